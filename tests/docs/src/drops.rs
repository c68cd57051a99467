//! The counters of the datapath, from the one table in `mesh-ebpf-types`.

use mesh_ebpf_types::Reason;

use crate::layout::{table, wrapped};

/// Every reason of a drop: a section each with meaning, cause and remedy.
pub(crate) fn explained() -> String {
    let mut text = String::new();
    for reason in Reason::ALL {
        let Some(explanation) = reason.explanation() else { continue };
        let parts = [
            format!("## {}\n", reason.name()),
            wrapped("", explanation.meaning),
            String::new(),
            wrapped("- ", &format!("Cause: {}", explanation.cause)),
            wrapped("- ", &format!("Remedy: {}", explanation.remedy)),
            "\n".to_owned(),
        ];
        text.push_str(&parts.join("\n"));
    }
    text
}

/// Every counter of packets that were carried or answered.
pub(crate) fn carried() -> String {
    let carried = Reason::ALL.iter().filter_map(|reason| Some((reason, reason.carried()?)));
    table(
        ["Counter", "Packets"],
        carried.map(|(reason, meaning)| [format!("`{}`", reason.name()), meaning.to_owned()]),
    )
}
