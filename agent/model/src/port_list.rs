//! Published ports for people: neighbours as a range, and of very many the first few.

use std::collections::BTreeSet;

use crate::{Protocol, PublishMode, PublishedPort};

/// So many ranges stand on one line.
const SHOWN: usize = 8;

/// Ports whose published and target ports both go up by one are one range, as in
/// `8000-8010:80-90/tcp`.
pub fn ranges(ports: &[PublishedPort]) -> Vec<String> {
    let mut ranges: Vec<(PublishedPort, PublishedPort)> = Vec::new();
    for port in ports {
        match ranges.last_mut() {
            Some((_, last)) if follows(last, port) => *last = *port,
            _ => ranges.push((*port, *port)),
        }
    }
    ranges.iter().map(|(first, last)| range(first, last)).collect()
}

/// The published numbers alone, in order, where neighbours are one range, as in `80/tcp` or
/// `8000-8010/udp`.
pub fn numbers(ports: &[PublishedPort]) -> Vec<String> {
    let numbers: BTreeSet<(Protocol, u16)> =
        ports.iter().map(|port| (port.protocol, port.published)).collect();
    let mut ranges: Vec<(Protocol, u16, u16)> = Vec::new();
    for (protocol, number) in numbers {
        match ranges.last_mut() {
            Some((of, _, last)) if *of == protocol && last.checked_add(1) == Some(number) => *last = number,
            _ => ranges.push((protocol, number, number)),
        }
    }
    let text = |(protocol, first, last): &(Protocol, u16, u16)| {
        if first == last { format!("{first}/{protocol}") } else { format!("{first}-{last}/{protocol}") }
    };
    ranges.iter().map(text).collect()
}

/// The first texts of a list, and how many more there are.
pub fn shortened(mut texts: Vec<String>) -> Vec<String> {
    if texts.len() > SHOWN {
        let more = texts.len() - (SHOWN - 1);
        texts.truncate(SHOWN - 1);
        texts.push(format!("and {more} more"));
    }
    texts
}

fn follows(last: &PublishedPort, port: &PublishedPort) -> bool {
    last.published.checked_add(1) == Some(port.published)
        && last.target.checked_add(1) == Some(port.target)
        && *port == PublishedPort { published: port.published, target: port.target, ..*last }
}

fn range(first: &PublishedPort, last: &PublishedPort) -> String {
    if first == last {
        return first.to_string();
    }
    let published = format!("{}-{}", first.published, last.published);
    let target = format!("{}-{}", first.target, last.target);
    let text = first.to_string();
    // The text of one port, with both numbers replaced.
    let (from, to) = match first.mode {
        PublishMode::Ingress => {
            (format!("{}:{}/", first.published, first.target), format!("{published}:{target}/"))
        }
        PublishMode::Host => (
            format!("published={},target={},", first.published, first.target),
            format!("published={published},target={target},"),
        ),
    };
    text.replacen(&from, &to, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(texts: &[&str]) -> Vec<String> {
        let ports: Vec<PublishedPort> = texts.iter().map(|text| text.parse().unwrap()).collect();
        ranges(&ports)
    }

    #[test]
    fn neighbours_are_one_range() {
        for (texts, expected) in [
            (&["8080:80"][..], &["8080:80/tcp"][..]),
            (&["8080:80", "8081:81", "8082:82", "9000:9000"], &["8080-8082:80-82/tcp", "9000:9000/tcp"]),
            (&["192.0.2.1:1:1", "192.0.2.1:2:2"], &["192.0.2.1:1-2:1-2/tcp"]),
            (&["[fd00::80]:80:80", "[fd00::80]:81:81"], &["[fd00::80]:80-81:80-81/tcp"]),
            (&["8080:80", "8081:81/udp", "8082:80"], &["8080:80/tcp", "8081:81/udp", "8082:80/tcp"]),
            (
                &["published=1,target=5,mode=host", "published=2,target=6,mode=host"],
                &["published=1-2,target=5-6,protocol=tcp,mode=host"],
            ),
        ] {
            assert_eq!(shown(texts), expected);
        }
    }

    #[test]
    fn published_numbers_are_folded_whatever_they_lead_to() {
        let ports: Vec<PublishedPort> = ["82:1", "80:1", "81:1", "9:1/udp", "192.0.2.1:90:9"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        assert_eq!(numbers(&ports), ["80-82/tcp", "90/tcp", "9/udp"]);
    }

    #[test]
    fn of_very_many_only_the_first_are_shown() {
        let texts: Vec<String> = (0..10_000).map(|n| n.to_string()).collect();
        let short = shortened(texts);
        assert_eq!((short.len(), short.last().map(String::as_str)), (8, Some("and 9993 more")));
        assert_eq!(shortened(vec!["1".to_owned(); 8]).len(), 8);
    }
}
