//! Plain text for people: columns without borders, as `docker ... ls` prints them.

use comfy_table::{Table, presets};

use crate::terminal::line;

/// The placeholder of an empty cell, so that columns can still be counted.
pub(crate) const NONE: &str = "-";

/// Characters of an id in a table; a prefix names the object as well as the whole id does.
const SHORT_ID: usize = 12;

/// Rows under upper-case headers.
pub(crate) fn columns<const N: usize>(
    headers: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = plain();
    table.set_header(headers);
    // A cell must not make a line of its own.
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| line(&cell).into_owned())));
    render(&mut table)
}

/// A `Label:  value` line each.
pub(crate) fn details<const N: usize>(lines: [(&str, String); N]) -> String {
    let mut table = plain();
    table.add_rows(lines.map(|(label, value)| [format!("{label}:"), line(&value).into_owned()]));
    render(&mut table)
}

/// An id as tables show it.
pub(crate) fn short(id: &str) -> String {
    id.get(..SHORT_ID).unwrap_or(id).to_owned()
}

/// A value, or the sign for none.
pub(crate) fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| NONE.to_owned(), |value| value.to_string())
}

/// Values with commas between them, or the sign for none.
pub(crate) fn list<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    let values: Vec<_> = values.into_iter().map(|value| value.to_string()).collect();
    if values.is_empty() { NONE.to_owned() } else { values.join(",") }
}

/// `yes` or `no`.
pub(crate) fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table
}

fn render(table: &mut Table) -> String {
    for column in table.column_iter_mut() {
        column.set_padding((0, 3));
    }
    table.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_no_borders_and_no_trailing_blanks() {
        let rows = [["1".to_owned(), "app".to_owned()], ["22".to_owned(), "b".to_owned()]];
        assert_eq!(columns(["ID", "NAME"], rows), "ID   NAME\n1    app\n22   b\n");
    }

    #[test]
    fn a_table_without_rows_still_has_its_headers() {
        assert_eq!(columns(["ID", "NAME"], []), "ID   NAME\n");
    }

    #[test]
    fn details_stand_in_one_column() {
        let lines = [("Name", "app".to_owned()), ("Driver", "overlay".to_owned())];
        assert_eq!(details(lines), "Name:     app\nDriver:   overlay\n");
    }
}
