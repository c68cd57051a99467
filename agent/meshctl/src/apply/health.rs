//! Compose's `healthcheck:` as far as it says what a check from outside of the container can find out.

use mesh_model::{HealthCheck, HealthKind};

use super::notes::Ignored;
use super::yaml::{Invalid, Item, Reason, Section};
use crate::cli::value;

/// Reads `healthcheck:`, and what `x-mesh:` says of it, which wins.
pub(super) fn read<'a>(
    check: Option<Item<'a>>,
    own: Option<&mut Section<'a>>,
    ignored: &mut Vec<Ignored>,
) -> Result<Option<HealthCheck>, Invalid> {
    let mut asked = Asked::default();
    if let Some(check) = check {
        asked.read(check, ignored)?;
    }
    if let Some(own) = own {
        asked.read_own(own, ignored)?;
    }
    let Some((kind, at)) = asked.kind else {
        ignored.extend(asked.interval.into_iter().chain(asked.retries).map(|item| item.ignored()));
        return Ok(None);
    };
    let interval = asked
        .interval
        .map_or(Ok(HealthCheck::DEFAULT_INTERVAL), |interval| interval.read(value::duration))?;
    let retries = asked.retries.map_or(Ok(HealthCheck::DEFAULT_RETRIES), |retries| retries.parse())?;
    HealthCheck::new(kind, interval, retries).map(Some).map_err(|error| at.invalid_key("health check", error))
}

/// What was asked for so far, and where.
#[derive(Debug, Default)]
struct Asked<'a> {
    kind: Option<(HealthKind, Item<'a>)>,
    test: Option<Item<'a>>,
    interval: Option<Item<'a>>,
    retries: Option<Item<'a>>,
}

impl<'a> Asked<'a> {
    fn read(&mut self, check: Item<'a>, ignored: &mut Vec<Ignored>) -> Result<(), Invalid> {
        let mut check = check.section()?;
        let disabled = check.take("disable").map_or(Ok(false), |disable| disable.boolean())?;
        if let Some(test) = check.take("test") {
            let words = words(&test)?;
            if disabled || words.first().is_some_and(|word| word == "NONE") {
                // That there is no check is what has effect.
            } else if let Some(kind) = kind(&words) {
                self.kind = Some((kind, test.clone()));
                self.test = Some(test);
            } else {
                ignored.push(test.ignored());
            }
        }
        self.interval = check.take("interval");
        self.retries = check.take("retries");
        check.finish(ignored);
        Ok(())
    }

    fn read_own(&mut self, own: &mut Section<'a>, ignored: &mut Vec<Ignored>) -> Result<(), Invalid> {
        let tcp = own.take("health-tcp");
        let http = own.take("health-http");
        let kind = match (tcp, http) {
            (None, None) => None,
            (Some(tcp), None) => Some((tcp.read(HealthKind::parse_tcp)?, tcp)),
            (None, Some(http)) => Some((http.read(HealthKind::parse_http)?, http)),
            (Some(_), Some(http)) => {
                return Err(http.invalid(Reason::Contradiction("there is a health-tcp already")));
            }
        };
        if kind.is_some() {
            self.kind = kind;
            ignored.extend(self.test.take().map(|test| test.ignored()));
        }
        self.interval = own.take("health-interval").or(self.interval.take());
        self.retries = own.take("health-retries").or(self.retries.take());
        Ok(())
    }
}

/// `["CMD", ...]` as it is; text and `["CMD-SHELL", TEXT]` split at blanks behind `CMD-SHELL`.
fn words(test: &Item<'_>) -> Result<Vec<String>, Invalid> {
    if test.is_list() {
        let words: Vec<_> =
            test.list()?.iter().map(|word| word.text().map(str::to_owned)).collect::<Result<_, _>>()?;
        return Ok(match words.as_slice() {
            [first, command] if first == "CMD-SHELL" => shell_words(command),
            _ => words,
        });
    }
    Ok(shell_words(test.text()?))
}

/// A plain command and its arguments; nothing that a shell would expand, redirect or chain is looked into.
fn shell_words(command: &str) -> Vec<String> {
    let command = command.trim();
    // The usual end, which only makes any failure a 1.
    let plain = ["|| exit 1", "||exit 1", "|| false"].iter().find_map(|end| command.strip_suffix(end));
    let words = plain.unwrap_or(command).split_whitespace();
    std::iter::once("CMD").chain(words).map(|word| unquoted(word).to_owned()).collect()
}

fn unquoted(word: &str) -> &str {
    let inside = |quote| word.strip_prefix(quote).and_then(|word| word.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(word)
}

/// The check that a command amounts to, if it is one without any doubt.
fn kind(words: &[String]) -> Option<HealthKind> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ["CMD", program, arguments @ ..] = words.as_slice() else { return None };
    match program.rsplit('/').next()? {
        "curl" => curl(arguments),
        "wget" => wget(arguments),
        "nc" => netcat(arguments),
        _ => None,
    }
}

/// Without `-f`, curl succeeds whatever the server answers, which is another check than Mesh's.
fn curl(arguments: &[&str]) -> Option<HealthKind> {
    let (mut fails, mut url) = (false, None);
    let mut arguments = arguments.iter();
    while let Some(&argument) = arguments.next() {
        match argument {
            "--fail" => fails = true,
            "--silent" | "--show-error" => {}
            "-o" | "--output" => {
                arguments.next()?;
            }
            short if short.starts_with('-') && !short.starts_with("--") => {
                let flags = &short[1..];
                if flags.is_empty() || !flags.chars().all(|flag| matches!(flag, 'f' | 's' | 'S')) {
                    return None;
                }
                fails |= flags.contains('f');
            }
            other if !other.starts_with('-') && url.is_none() => url = Some(other),
            _ => return None,
        }
    }
    if fails { local_url(url?) } else { None }
}

fn wget(arguments: &[&str]) -> Option<HealthKind> {
    let mut url = None;
    let mut arguments = arguments.iter();
    while let Some(&argument) = arguments.next() {
        match argument {
            "-q" | "--quiet" | "--spider" | "-nv" | "--no-verbose" | "-O-" | "-qO-" | "-O/dev/null"
            | "-qO/dev/null" => {}
            "-O" | "-qO" => {
                arguments.next()?;
            }
            tries if tries.starts_with("--tries=") => {}
            other if !other.starts_with('-') && url.is_none() => url = Some(other),
            _ => return None,
        }
    }
    local_url(url?)
}

/// `nc -z HOST PORT`: whether somebody listens.
fn netcat(arguments: &[&str]) -> Option<HealthKind> {
    let [flags, host, port] = arguments else { return None };
    if matches!(*flags, "-z" | "-vz" | "-zv") && is_local(host) {
        HealthKind::parse_tcp(port).ok()
    } else {
        None
    }
}

/// `http://localhost[:PORT][/PATH]`.
fn local_url(url: &str) -> Option<HealthKind> {
    let rest = if url.contains("://") { url.strip_prefix("http://")? } else { url };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, "80"),
    };
    // A variable of the container's, or anything else that a shell would still change.
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-~?=&%+,:@".contains(&byte));
    if is_local(host) && plain { HealthKind::parse_http(&format!("{port}{path}")).ok() } else { None }
}

fn is_local(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_shell(command: &str) -> Option<String> {
        kind(&shell_words(command)).map(|kind| kind.to_string())
    }

    #[test]
    fn a_plain_request_to_itself_is_an_http_check() {
        for (command, check) in [
            ("curl -f http://localhost", "http 80/"),
            ("curl -fsS -o /dev/null http://127.0.0.1:8080/healthz || exit 1", "http 8080/healthz"),
            ("curl --fail --silent 'http://[::1]:8080/x?full=1'", "http 8080/x?full=1"),
            ("wget -q --spider http://localhost:3000/", "http 3000/"),
            ("/usr/bin/wget --tries=1 --no-verbose --spider localhost:3000/up || exit 1", "http 3000/up"),
            ("wget -qO- http://localhost/ping", "http 80/ping"),
            ("nc -z localhost 5432", "tcp 5432"),
        ] {
            assert_eq!(of_shell(command).as_deref(), Some(check), "{command}");
        }
    }

    #[test]
    fn what_might_mean_something_else_is_not_guessed() {
        for command in [
            "",
            "curl http://localhost",
            "curl -f https://localhost",
            "curl -f http://db:8080/",
            "curl -fL http://localhost/",
            "curl -f -X POST http://localhost/",
            "curl -f http://localhost | grep ok",
            "curl -f http://localhost:$PORT/",
            "curl -f http://localhost http://localhost/2",
            "curl -f",
            "wget --spider --header=X:1 http://localhost",
            "nc localhost 5432",
            "pg_isready -U postgres",
            "test -f /ready && curl -f http://localhost",
        ] {
            assert_eq!(of_shell(command), None, "{command}");
        }
    }
}
