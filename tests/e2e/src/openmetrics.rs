//! A strict parser of OpenMetrics 1.0 text
//! (<https://prometheus.io/docs/specs/om/open_metrics_spec/>). It is stricter than monitoring
//! systems, so that all of them accept what it accepts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use mesh_harness::Error;

/// The labels of a sample.
type Labels = BTreeMap<String, String>;

/// The samples of a valid text. It supports the parts of OpenMetrics that Mesh uses: gauges,
/// counters and infos with whole numbers, without timestamps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposition(BTreeMap<(String, Labels), u64>);

/// An error, and its line in the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Counted from 1.
    pub line: usize,
    /// Why the line is invalid.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self::Traffic(format!("no OpenMetrics: {fault}"))
    }
}

impl Exposition {
    /// Reads a whole text.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let mut reader = Reader::default();
        let mut lines = 0;
        for line in text.split_inclusive('\n') {
            lines += 1;
            let read = line.strip_suffix('\n').ok_or_else(|| "no line feed".to_owned());
            read.and_then(|line| reader.line(line)).map_err(|reason| Fault { line: lines, reason })?;
        }
        if !reader.ended {
            return Err(Fault { line: lines, reason: "the text ends without # EOF".to_owned() });
        }
        Ok(Self(reader.samples))
    }

    /// Returns the values of a metric's samples with at least these labels.
    fn of<'a>(&'a self, metric: &'a str, labels: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = u64> + 'a {
        let samples = self.0.iter().filter(move |((name, all), _)| {
            name == metric && labels.iter().all(|(key, value)| all.get(*key).is_some_and(|is| is == value))
        });
        samples.map(|(_, value)| *value)
    }

    /// Returns the value of the only sample of a metric with at least these labels.
    ///
    /// # Panics
    ///
    /// If there are several, since the labels are then ambiguous.
    #[track_caller]
    pub fn get(&self, metric: &str, labels: &[(&str, &str)]) -> Option<u64> {
        let values: Vec<u64> = self.of(metric, labels).collect();
        assert!(values.len() < 2, "{metric} {labels:?} has {} samples", values.len());
        values.first().copied()
    }

    /// Returns the sum over all samples of a metric with at least these labels.
    pub fn sum(&self, metric: &str, labels: &[(&str, &str)]) -> u64 {
        self.of(metric, labels).sum()
    }
}

/// A family whose lines are being parsed.
#[derive(Debug)]
struct Family {
    name: String,
    kind: Option<String>,
    has_help: bool,
    has_unit: bool,
    /// The label names of its samples.
    labels: Option<BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Reader {
    family: Option<Family>,
    /// All families so far: their lines must not be mixed.
    families: BTreeSet<String>,
    samples: BTreeMap<(String, Labels), u64>,
    ended: bool,
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if self.ended {
            return Err("something follows # EOF".to_owned());
        }
        if line == "# EOF" {
            self.ended = true;
            return Ok(());
        }
        match line.strip_prefix("# ") {
            Some(described) => self.describe(described),
            None => self.sample(line),
        }
    }

    fn describe(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.splitn(3, ' ');
        let (Some(what), Some(name), Some(text)) = (words.next(), words.next(), words.next()) else {
            return Err(format!("neither TYPE, HELP nor UNIT of a family: {line}"));
        };
        if !is_name(name, true) {
            return Err(format!("{name} is no name of a family"));
        }
        if self.family.as_ref().is_none_or(|family| family.name != name) {
            if !self.families.insert(name.to_owned()) {
                return Err(format!("{name} was there before"));
            }
            let name = name.to_owned();
            self.family = Some(Family { name, kind: None, has_help: false, has_unit: false, labels: None });
        }
        let Some(family) = &mut self.family else { return Err("no family".to_owned()) };
        let is_first = match what {
            "TYPE" if ["gauge", "counter", "info"].contains(&text) => {
                family.kind.replace(text.to_owned()).is_none()
            }
            "HELP" => {
                unescape(text)?;
                !std::mem::replace(&mut family.has_help, true)
            }
            "UNIT" if name.strip_suffix(text).is_some_and(|start| start.ends_with('_')) => {
                !std::mem::replace(&mut family.has_unit, true)
            }
            _ => return Err(format!("{what} {text} is not understood")),
        };
        if !is_first || family.labels.is_some() {
            return Err(format!("{what} of {name} comes twice, or after a sample"));
        }
        Ok(())
    }

    fn sample(&mut self, line: &str) -> Result<(), String> {
        let end = line.find(['{', ' ']).ok_or_else(|| format!("no sample: {line}"))?;
        let (name, rest) = line.split_at(end);
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => read_labels(rest)?,
            None => (Labels::new(), rest),
        };
        let value = value.strip_prefix(' ').ok_or_else(|| format!("no value: {line}"))?;
        let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
        let value: u64 =
            value.parse().ok().filter(|_| digits).ok_or_else(|| format!("not whole: {value}"))?;
        let family = self.family.as_mut().filter(|family| name.starts_with(&family.name));
        let family = family.ok_or_else(|| format!("{name} is of another family than the lines before it"))?;
        let suffix = match family.kind.as_deref() {
            Some("counter") => "_total",
            Some("gauge") => "",
            Some("info") if value == 1 && !family.has_unit => "_info",
            _ => return Err(format!("{name} has no TYPE, or is an info that has a unit or is not 1")),
        };
        if name.strip_prefix(&family.name) != Some(suffix) {
            return Err(format!("{name} should be {}{suffix}", family.name));
        }
        let names: BTreeSet<String> = labels.keys().cloned().collect();
        if family.labels.get_or_insert_with(|| names.clone()) != &names {
            return Err(format!("{name} has other labels than the sample before it"));
        }
        match self.samples.insert((name.to_owned(), labels), value) {
            None => Ok(()),
            Some(_) => Err(format!("a second sample of the same series: {line}")),
        }
    }
}

/// Parses labels up to the closing brace, and returns the rest.
fn read_labels(mut rest: &str) -> Result<(Labels, &str), String> {
    let mut labels = Labels::new();
    loop {
        let (name, quoted) = rest.split_once("=\"").ok_or_else(|| format!("no label: {rest}"))?;
        if !is_name(name, false) || name.starts_with("__") {
            return Err(format!("{name} is no name of a label"));
        }
        let mut is_escaped = false;
        let end = quoted.find(|character| {
            let ends = character == '"' && !is_escaped;
            is_escaped = character == '\\' && !is_escaped;
            ends
        });
        let (value, after) = quoted.split_at(end.ok_or_else(|| format!("no closing quote: {quoted}"))?);
        if labels.insert(name.to_owned(), unescape(value)?).is_some() {
            return Err(format!("the label {name} comes twice"));
        }
        match after.split_at_checked(2) {
            Some(("\",", more)) => rest = more,
            Some(("\"}", value)) => return Ok((labels, value)),
            _ => return Err(format!("neither a comma nor a brace: {after}")),
        }
    }
}

/// Resolves escapes. `\\`, `\n` and `\"` are the only ones.
fn unescape(escaped: &str) -> Result<String, String> {
    let mut text = String::new();
    let mut characters = escaped.chars();
    while let Some(character) = characters.next() {
        text.push(match character {
            '\\' => match characters.next() {
                Some('n') => '\n',
                Some(literal @ ('\\' | '"')) => literal,
                _ => return Err(format!("an escape that there is not: {escaped}")),
            },
            plain => plain,
        });
    }
    Ok(text)
}

fn is_name(name: &str, of_metric: bool) -> bool {
    let starts = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_' || (of_metric && byte == b':');
    let mut bytes = name.bytes();
    bytes.next().is_some_and(starts) && bytes.all(|byte| starts(byte) || byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_found_by_a_subset_of_their_labels() {
        let text = "# TYPE a counter\n# HELP a A \\\"quote\\\".\na_total{x=\"1\",y=\"\\\\\\n\\\"\"} 3\na_total{x=\"2\",y=\"\"} 4\n\
                    # TYPE b_bytes gauge\n# UNIT b_bytes bytes\nb_bytes 18446744073709551615\n\
                    # TYPE c info\nc_info{v=\"1\"} 1\n# EOF\n";
        let read = Exposition::parse(text).unwrap();
        assert_eq!(read.get("a_total", &[("y", "\\\n\"")]), Some(3));
        assert_eq!((read.get("a_total", &[("x", "3")]), read.get("a", &[])), (None, None));
        assert_eq!((read.sum("a_total", &[]), read.sum("a_total", &[("x", "2")])), (7, 4));
        assert_eq!((read.get("b_bytes", &[]), read.get("c_info", &[])), (Some(u64::MAX), Some(1)));
    }

    #[test]
    fn violations_of_openmetrics_are_found() {
        for (line, text) in [
            (0, ""),
            (2, "# TYPE a gauge\na 1\n"),
            (2, "# TYPE a gauge\na 1"),
            (3, "# TYPE a gauge\na 1\n\n# EOF\n"),
            (2, "# EOF\n# EOF\n"),
            (1, "a 1\n# EOF\n"),
            (2, "# HELP a A.\na 1\n# EOF\n"),
            (1, "# TYPE a sum\na 1\n# EOF\n"),
            (1, "#TYPE a gauge\na 1\n# EOF\n"),
            (1, "# TYPE 1a gauge\n# EOF\n"),
            (2, "# TYPE a counter\na 1\n# EOF\n"),
            (2, "# TYPE a gauge\na_total 1\n# EOF\n"),
            (2, "# TYPE a info\na_info{v=\"1\"} 2\n# EOF\n"),
            (2, "# TYPE a gauge\nb 1\n# EOF\n"),
            (2, "# TYPE a gauge\n# UNIT a bytes\na 1\n# EOF\n"),
            (3, "# TYPE a gauge\na 1\n# HELP a A.\n# EOF\n"),
            (2, "# TYPE a gauge\n# TYPE a gauge\n# EOF\n"),
            (3, "# TYPE a gauge\n# TYPE b gauge\na 1\n# EOF\n"),
            (3, "# TYPE a gauge\n# TYPE b gauge\n# TYPE a gauge\n# EOF\n"),
            (3, "# TYPE a gauge\na{x=\"1\"} 1\na{x=\"1\"} 1\n# EOF\n"),
            (3, "# TYPE a gauge\na{x=\"1\",y=\"2\"} 1\na{y=\"2\",x=\"1\"} 1\n# EOF\n"),
            (3, "# TYPE a gauge\na{x=\"1\"} 1\na{y=\"1\"} 1\n# EOF\n"),
            (2, "# TYPE a gauge\na{x=\"1\",x=\"2\"} 1\n# EOF\n"),
            (2, "# TYPE a gauge\na{x=\"1} 1\n# EOF\n"),
            (2, "# TYPE a gauge\na{x=\"\\t\"} 1\n# EOF\n"),
            (2, "# TYPE a gauge\na{x=\"\"\"} 1\n# EOF\n"),
            (2, "# TYPE a gauge\na{x-y=\"1\"} 1\n# EOF\n"),
            (2, "# TYPE a gauge\na{__x=\"1\"} 1\n# EOF\n"),
            (2, "# TYPE a gauge\na  1\n# EOF\n"),
            (2, "# TYPE a gauge\na 1 \n# EOF\n"),
            (2, "# TYPE a gauge\na +1\n# EOF\n"),
            (2, "# TYPE a gauge\na\n# EOF\n"),
        ] {
            assert_eq!(Exposition::parse(text).unwrap_err().line, line, "{text}");
        }
    }
}
