//! Which reported names other nodes may resolve.

use mesh_model::Name;

/// Last labels that are reserved for private use, or that no public name ends in (RFC 6761, RFC
/// 6762, RFC 8375, RFC 9476, and the ICANN board's resolution on `internal`).
const PRIVATE: [&str; 12] = [
    "internal",
    "local",
    "test",
    "example",
    "invalid",
    "alt",
    "lan",
    "home",
    "corp",
    "intranet",
    "private",
    "localdomain",
];

/// Returns why other nodes do not resolve a name that a worker reports; `None` if they do.
///
/// A name without a dot is private, except `localhost`. One with dots is private if its last label
/// cannot be a public top-level domain: these consist of letters only, or begin with `xn--` (RFC
/// 3696, section 2).
pub(super) fn withheld(name: &Name) -> Option<&'static str> {
    let folded = name.folded();
    let text = folded.as_str().trim_end_matches('.');
    let Some((rest, last)) = text.rsplit_once('.') else {
        return (text == "localhost").then_some("localhost is every host's own name");
    };
    if last == "localhost" {
        return Some("names below localhost are every host's own");
    }
    if rest == "tasks" || rest.starts_with("tasks.") {
        return Some("names that begin with tasks. are those of services");
    }
    let may_be_public = last.starts_with("xn--")
        || (last.len() > 1
            && last.bytes().all(|byte| byte.is_ascii_alphabetic())
            && !PRIVATE.contains(&last));
    may_be_public.then_some("it may be a public domain name, which only a manager's own endpoints can have")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reported_name_that_may_be_a_public_domain_is_withheld_and_others_are_not() {
        for name in [
            "google.com",
            "GOOGLE.COM",
            "vercel.app",
            "a.b.co.uk",
            "x.xn--p1ai",
            "google.com.",
            "localhost",
            "a.localhost",
            "tasks.web",
            "web.app",
        ] {
            assert!(withheld(&name.parse().unwrap()).is_some(), "{name}");
        }
        for name in ["web", "web.1", "db.internal", "db.corp", "my_net.v2", "web-1", "10.0.0.1", "a.b_c"] {
            assert!(withheld(&name.parse().unwrap()).is_none(), "{name}");
        }
    }
}
