//! Families of samples in the text of OpenMetrics, by the `prometheus-client` library.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

/// A sample's labels: names, each once, and values of any characters.
pub(super) type Labels = Vec<(&'static str, String)>;

/// What samples of a family have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Family {
    /// The name, without unit and without what the kind adds (`_total`, `_info`).
    pub(super) name: &'static str,
    /// The unit, which the name ends with.
    pub(super) unit: Option<&'static Unit>,
    /// A sentence about it.
    pub(super) help: &'static str,
}

/// A family whose name says all about its unit.
pub(super) const fn family(name: &'static str, help: &'static str) -> Family {
    Family { name, unit: None, help }
}

/// A family in bytes.
pub(super) const fn bytes(name: &'static str, help: &'static str) -> Family {
    Family { name, unit: Some(&Unit::Bytes), help }
}

/// A family in seconds.
pub(super) const fn seconds(name: &'static str, help: &'static str) -> Family {
    Family { name, unit: Some(&Unit::Seconds), help }
}

/// Takes families, one after the other. One without samples is left out.
pub(super) struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    /// A value that goes up and down, of the agent as a whole.
    pub(super) fn value(&mut self, family: Family, value: u64) -> fmt::Result {
        let Family { name, unit, help } = family;
        self.0.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
    }

    /// A count that only goes up, of the agent as a whole.
    pub(super) fn total(&mut self, family: Family, value: u64) -> fmt::Result {
        let Family { name, unit, help } = family;
        let mut metric = self.0.encode_descriptor(name, help, unit, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, u64>(&value, None)
    }

    /// Values that go up and down.
    pub(super) fn gauge(
        &mut self,
        family: Family,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        self.family(family, MetricType::Gauge, samples, |to, (labels, value)| {
            to.encode_family(&labels)?.encode_gauge(&value)
        })
    }

    /// Counts that only go up, until what counts begins anew.
    pub(super) fn counter(
        &mut self,
        family: Family,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        self.family(family, MetricType::Counter, samples, |to, (labels, value)| {
            to.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&value, None)
        })
    }

    /// Facts that are text.
    pub(super) fn info(&mut self, family: Family, facts: impl IntoIterator<Item = Labels>) -> fmt::Result {
        self.family(family, MetricType::Info, facts, |to, labels| to.encode_info(&labels))
    }

    fn family<S>(
        &mut self,
        Family { name, unit, help }: Family,
        kind: MetricType,
        samples: impl IntoIterator<Item = S>,
        encode: impl Fn(&mut MetricEncoder<'_>, S) -> fmt::Result,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut to = self.0.encode_descriptor(name, help, unit, kind)?;
        samples.try_for_each(|sample| encode(&mut to, sample))
    }
}

/// The text of the families that `write` writes.
pub(super) fn text(write: impl Fn(&mut Writer<'_>) -> fmt::Result + Send + Sync + 'static) -> String {
    // A registry for one text: nothing is kept between two, and there are no others' metrics in it.
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Source(write)));
    let mut text = String::new();
    // Neither a string nor our families refuse anything.
    if encode(&mut text, &registry).is_err() {
        tracing::error!("the metrics could not be written");
    }
    text
}

/// A function as the library's source of metrics.
struct Source<F>(F);

impl<F> fmt::Debug for Source<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Source")
    }
}

impl<F: Fn(&mut Writer<'_>) -> fmt::Result + Send + Sync + 'static> Collector for Source<F> {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut Writer(encoder))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn families_have_type_unit_and_help_and_the_text_has_an_end() {
        let text = text(|to| {
            to.value(bytes("a", "A."), u64::MAX)?;
            to.counter(
                bytes("b", "B."),
                [(vec![("x", "1".to_owned())], 0), (vec![("x", String::new())], 7)],
            )?;
            to.counter(family("left_out", "Nothing."), [])?;
            to.gauge(seconds("c", "C."), [(vec![("x", "1".to_owned()), ("y", "2".to_owned())], 3)])?;
            to.info(family("d", "D."), [vec![("v", "1.0".to_owned())]])
        });
        let expected = "\
            # HELP a_bytes A.\n# TYPE a_bytes gauge\n# UNIT a_bytes bytes\na_bytes 18446744073709551615\n\
            # HELP b_bytes B.\n# TYPE b_bytes counter\n# UNIT b_bytes bytes\n\
            b_bytes_total{x=\"1\"} 0\nb_bytes_total{x=\"\"} 7\n\
            # HELP c_seconds C.\n# TYPE c_seconds gauge\n# UNIT c_seconds seconds\nc_seconds{x=\"1\",y=\"2\"} 3\n\
            # HELP d D.\n# TYPE d info\nd_info{v=\"1.0\"} 1\n# EOF\n";
        assert_eq!(text, expected);
    }

    /// The value of a label as a reader takes it out of a line, and what follows its closing quote.
    fn unescaped(quoted: &str) -> Option<(String, &str)> {
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        loop {
            match characters.next()? {
                (end, '"') => return Some((value, &quoted[end + 1..])),
                (_, '\\') => value.push(match characters.next()?.1 {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    _ => return None,
                }),
                (_, plain) => value.push(plain),
            }
        }
    }

    proptest! {
        #[test]
        fn any_text_and_any_number_come_back(value in any::<String>(), number in any::<u64>()) {
            let labels = value.clone();
            let text = text(move |to| to.counter(family("f", "F."), [(vec![("x", labels.clone())], number)]));
            let sample = text.strip_prefix("# HELP f F.\n# TYPE f counter\nf_total{x=\"").expect("a head");
            let sample = sample.strip_suffix("\n# EOF\n").expect("an end");
            prop_assert!(!sample.contains('\n'), "one line: {}", sample);
            let (found, rest) = unescaped(sample).expect("a label");
            prop_assert_eq!(found, value);
            prop_assert_eq!(rest, format!("}} {number}"));
        }
    }
}
