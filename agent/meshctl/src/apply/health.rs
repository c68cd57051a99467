//! Compose's `healthcheck:`, as far as a check from outside the container can do the same.

use std::time::Duration;

use mesh_model::health::InvalidHealthCheck;
use mesh_model::{HealthCheck, HealthKind, Loopback};

use super::notes::Ignored;
use super::yaml::{Invalid, Item, Reason, Section};
use crate::cli::value;

/// Docker's default timeout of a container's check.
const DOCKER_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads `healthcheck:`, and the settings in `x-mesh:`, which take precedence.
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
    let Some((tried, at)) = asked.tried else {
        let times = [asked.interval, asked.retries, asked.timeout, asked.start_period, asked.start_interval];
        ignored.extend(times.into_iter().flatten().map(|item| item.ignored()));
        return Ok(None);
    };
    let interval = asked
        .interval
        .map_or(Ok(HealthCheck::DEFAULT_INTERVAL), |interval| interval.read(value::duration))?;
    let retries = asked.retries.map_or(Ok(HealthCheck::DEFAULT_RETRIES), |retries| retries.parse())?;
    let usual = tried.loopback.map(|_| DOCKER_TIMEOUT);
    let timeout = asked.timeout.map(|timeout| timeout.read(value::duration)).transpose()?.or(usual);
    let start_period = asked.start_period.map(|period| period.read(value::duration)).transpose()?;
    let start_interval = asked.start_interval.map(|interval| interval.read(value::duration)).transpose()?;
    let start = Start { period: start_period.unwrap_or_default(), interval: start_interval };
    tried
        .check(interval, retries, timeout, start)
        .map(Some)
        .map_err(|error| at.invalid_key("health check", error))
}

/// Settings for the start of a container.
#[derive(Debug, Clone, Copy, Default)]
struct Start {
    period: Duration,
    interval: Option<Duration>,
}

/// The kind of check, and its address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tried {
    kind: HealthKind,
    loopback: Option<Loopback>,
    host: Option<String>,
}

impl Tried {
    fn check(
        self,
        interval: Duration,
        retries: u32,
        timeout: Option<Duration>,
        start: Start,
    ) -> Result<HealthCheck, InvalidHealthCheck> {
        let mut check = HealthCheck::new(self.kind, interval, retries)?.with_start_period(start.period)?;
        // In Docker, 0 selects the default, as for the timeout.
        if let Some(interval) = start.interval.filter(|interval| !interval.is_zero()) {
            check = check.with_start_interval(interval)?;
        }
        if let Some(timeout) = timeout.filter(|timeout| !timeout.is_zero()) {
            check = check.with_timeout(timeout)?;
        }
        if let Some(host) = self.host {
            check = check.with_host(host)?;
        }
        Ok(HealthCheck { loopback: self.loopback, ..check })
    }
}

impl From<HealthKind> for Tried {
    fn from(kind: HealthKind) -> Self {
        Self { kind, loopback: None, host: None }
    }
}

/// The settings so far, and their places in the file.
#[derive(Debug, Default)]
struct Asked<'a> {
    tried: Option<(Tried, Item<'a>)>,
    test: Option<Item<'a>>,
    interval: Option<Item<'a>>,
    retries: Option<Item<'a>>,
    timeout: Option<Item<'a>>,
    start_period: Option<Item<'a>>,
    start_interval: Option<Item<'a>>,
}

impl<'a> Asked<'a> {
    fn read(&mut self, check: Item<'a>, ignored: &mut Vec<Ignored>) -> Result<(), Invalid> {
        let mut check = check.section()?;
        let disabled = check.take("disable").map_or(Ok(false), |disable| disable.boolean())?;
        if let Some(test) = check.take("test") {
            let words = words(&test)?;
            if disabled || words.first().is_some_and(|word| word == "NONE") {
                // That the check is disabled takes precedence.
            } else if let Some(tried) = tried(&words) {
                self.tried = Some((tried, test.clone()));
                self.test = Some(test);
            } else {
                ignored.push(test.ignored());
            }
        }
        self.interval = check.take("interval");
        self.retries = check.take("retries");
        self.timeout = check.take("timeout");
        self.start_period = check.take("start_period");
        self.start_interval = check.take("start_interval");
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
                return Err(http.invalid(Reason::Contradiction("health-tcp is also given")));
            }
        };
        if let Some((kind, at)) = kind {
            self.tried = Some((kind.into(), at));
            ignored.extend(self.test.take().map(|test| test.ignored()));
        }
        self.interval = own.take("health-interval").or(self.interval.take());
        self.retries = own.take("health-retries").or(self.retries.take());
        Ok(())
    }
}

/// Returns `["CMD", ...]` unchanged; splits text and `["CMD-SHELL", TEXT]` at blanks, after
/// `CMD-SHELL`.
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

/// Splits a plain command into words. Commands with shell expansion, redirection or chaining are
/// not analysed.
fn shell_words(command: &str) -> Vec<String> {
    let command = command.trim();
    // A common suffix, which only turns any failure into 1.
    let plain = ["|| exit 1", "||exit 1", "|| false"].iter().find_map(|end| command.strip_suffix(end));
    let mut words = vec!["CMD".to_owned()];
    let (mut word, mut quote) = (None::<String>, None);
    for c in plain.unwrap_or(command).chars() {
        match quote {
            Some(end) if c == end => quote = None,
            None if c == '"' || c == '\'' => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            None if c.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Returns the check that is certainly equivalent to a command, if there is one.
fn tried(words: &[String]) -> Option<Tried> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let ["CMD", program, arguments @ ..] = words.as_slice() else { return None };
    match program.rsplit('/').next()? {
        "curl" => curl(arguments),
        "wget" => wget(arguments),
        "nc" => netcat(arguments),
        _ => None,
    }
}

/// Without `-f`, curl succeeds for any status, which differs from Mesh's check.
fn curl(arguments: &[&str]) -> Option<Tried> {
    let (mut fails, mut url, mut host) = (false, None, None);
    let mut arguments = arguments.iter();
    while let Some(&argument) = arguments.next() {
        match argument {
            "--fail" => fails = true,
            "--silent" | "--show-error" => {}
            "-o" | "--output" => {
                arguments.next()?;
            }
            "-H" | "--header" if host.is_none() => host = Some(host_header(arguments.next()?)?),
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
    let tried = if fails { local_url(url?)? } else { return None };
    Some(Tried { host: host.or(tried.host), ..tried })
}

fn wget(arguments: &[&str]) -> Option<Tried> {
    let (mut url, mut host) = (None, None);
    let mut arguments = arguments.iter();
    while let Some(&argument) = arguments.next() {
        match argument {
            "-q" | "--quiet" | "--spider" | "-nv" | "--no-verbose" | "-O-" | "-qO-" | "-O/dev/null"
            | "-qO/dev/null" => {}
            "-O" | "-qO" => {
                arguments.next()?;
            }
            tries if tries.starts_with("--tries=") => {}
            header if header.starts_with("--header=") && host.is_none() => {
                host = Some(host_header(header.strip_prefix("--header=")?)?);
            }
            other if !other.starts_with('-') && url.is_none() => url = Some(other),
            _ => return None,
        }
    }
    let tried = local_url(url?)?;
    Some(Tried { host: host.or(tried.host), ..tried })
}

/// Parses `Host: NAME`; a check has no other header.
fn host_header(header: &str) -> Option<String> {
    let (name, value) = header.split_once(':')?;
    let value = value.trim();
    (name.eq_ignore_ascii_case("host") && !value.is_empty()).then(|| value.to_owned())
}

/// Parses `nc -z HOST PORT`, which tests whether the port is open.
fn netcat(arguments: &[&str]) -> Option<Tried> {
    let [flags, host, port] = arguments else { return None };
    let loopback = matches!(*flags, "-z" | "-vz" | "-zv").then(|| loopback(host)).flatten()?;
    let kind = HealthKind::parse_tcp(port).ok()?;
    Some(Tried { kind, loopback: Some(loopback), host: None })
}

/// Parses `http://localhost[:PORT][/PATH]`.
fn local_url(url: &str) -> Option<Tried> {
    let rest = if url.contains("://") { url.strip_prefix("http://")? } else { url };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, "80"),
    };
    // Refuse variables of the container, and anything else that a shell would expand.
    let plain = path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-~?=&%+,:@".contains(&byte));
    let loopback = loopback(host).filter(|_| plain)?;
    let kind = HealthKind::parse_http(&format!("{port}{path}")).ok()?;
    // As clients send it: without the default port.
    let host = if port == "80" { host.to_owned() } else { format!("{host}:{port}") };
    Some(Tried { kind, loopback: Some(loopback), host: Some(host) })
}

/// Returns the loopback address of a container; 0.0.0.0 reaches any of its own addresses.
fn loopback(host: &str) -> Option<Loopback> {
    match host {
        "0.0.0.0" => Some(Loopback::Ipv4),
        "[::1]" => Some(Loopback::Ipv6),
        other => Loopback::parse(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_shell(command: &str) -> Option<String> {
        let tried = tried(&shell_words(command))?;
        let check = tried.check(Duration::from_secs(1), 1, None, Start::default()).unwrap();
        Some(check.to_string())
    }

    #[test]
    fn a_plain_request_to_localhost_is_an_http_check() {
        for (command, check) in [
            ("curl -f http://localhost", "http 80/ at localhost"),
            (
                "curl -fsS -o /dev/null http://127.0.0.1:8080/healthz || exit 1",
                "http 8080/healthz at 127.0.0.1 as 127.0.0.1:8080",
            ),
            ("curl --fail --silent 'http://[::1]:8080/x?full=1'", "http 8080/x?full=1 at ::1 as [::1]:8080"),
            ("wget -q --spider http://localhost:3000/", "http 3000/ at localhost as localhost:3000"),
            (
                "/usr/bin/wget --tries=1 --no-verbose --spider localhost:3000/up || exit 1",
                "http 3000/up at localhost as localhost:3000",
            ),
            ("wget -qO- http://localhost/ping", "http 80/ping at localhost"),
            ("curl -f -H 'Host: shop.example' http://localhost/", "http 80/ at localhost as shop.example"),
            ("curl -f http://0.0.0.0:80/", "http 80/ at 127.0.0.1 as 0.0.0.0"),
            ("nc -z localhost 5432", "tcp 5432 at localhost"),
        ] {
            assert_eq!(of_shell(command).as_deref(), Some(check), "{command}");
        }
    }

    #[test]
    fn ambiguous_commands_are_not_interpreted() {
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
            "curl -f -H X:1 http://localhost",
            "nc localhost 5432",
            "pg_isready -U postgres",
            "test -f /ready && curl -f http://localhost",
        ] {
            assert_eq!(of_shell(command), None, "{command}");
        }
    }
}
