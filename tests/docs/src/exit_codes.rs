//! The exit codes, from the one table in `mesh-proto`.

use mesh_proto::ProblemKind;

use crate::layout;

/// Each exit code with the kind of error that has it.
pub(crate) fn table() -> String {
    let success = ["0".to_owned(), String::new(), "Success.".to_owned()];
    let kinds = ProblemKind::ALL.iter().map(|kind| {
        [kind.exit_code().to_string(), format!("`{}`", kind.as_str()), kind.meaning().to_owned()]
    });
    layout::table(["Code", "`kind` in JSON", "Meaning"], std::iter::once(success).chain(kinds))
}
