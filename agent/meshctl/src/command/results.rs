//! Results that several commands have in common.

use mesh_proto::Problem;
use serde::Serialize;

use crate::format::Format;
use crate::report::{self, Report};

/// Makes a call for each name, and continues after an error.
pub(super) async fn each<T>(
    names: Vec<String>,
    mut call: impl AsyncFnMut(String) -> Result<T, Problem>,
) -> (Vec<T>, Vec<Problem>) {
    let (mut done, mut problems) = (Vec::new(), Vec::new());
    for name in names {
        match call(name).await {
            Ok(value) => done.push(value),
            Err(problem) => problems.push(problem),
        }
    }
    (done, problems)
}

/// The result of several removals and the like, one line each.
pub(super) fn list_of<T: Serialize>(
    (done, mut problems): (Vec<T>, Vec<Problem>),
    format: Option<Format>,
    line: impl Fn(&T) -> String,
) -> Report {
    let text = in_form(&done, format, |done| done.iter().map(|value| line(value) + "\n").collect());
    let text = text.unwrap_or_else(|problem| {
        problems.push(problem);
        String::new()
    });
    Report { text, problems, ..Report::default() }
}

/// The result of an `inspect`: JSON unless a table is asked for; an object for one name, an array
/// for several.
pub(super) async fn inspect<T: Serialize>(
    names: Vec<String>,
    format: Option<Format>,
    call: impl AsyncFnMut(String) -> Result<T, Problem>,
    details: impl Fn(&T) -> String,
) -> Report {
    let several = names.len() > 1;
    let (found, mut problems) = each(names, call).await;
    let text = match (format, found.as_slice()) {
        (Some(Format::Table), found) => Ok(found.iter().map(details).collect::<Vec<_>>().join("\n")),
        (_, [one]) if !several => report::json(one),
        (_, []) if !several => Ok(String::new()),
        (_, found) => report::json(found),
    };
    let text = text.unwrap_or_else(|problem| {
        problems.push(problem);
        String::new()
    });
    Report { text, problems, ..Report::default() }
}

/// Formats a result as text, or as JSON if requested.
pub(super) fn in_form<T: Serialize + ?Sized>(
    value: &T,
    format: Option<Format>,
    text: impl FnOnce(&T) -> String,
) -> Result<String, Problem> {
    if format == Some(Format::Json) { report::json(value) } else { Ok(text(value)) }
}

/// Formats ids, one a line, or as a JSON array.
pub(super) fn ids<'a>(ids: impl Iterator<Item = &'a str>, format: Option<Format>) -> Result<String, Problem> {
    let ids: Vec<_> = ids.collect();
    in_form(&ids, format, |ids| ids.iter().flat_map(|id| [id, "\n"]).collect())
}
