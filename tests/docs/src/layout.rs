//! Markdown: tables and wrapped text.

use crate::prose::MAX_COLUMNS;

/// A table with a head and rows. `|` is escaped in the cells.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let line = |cells: &[String; N]| {
        let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let mut text = line(&head.map(str::to_owned));
    text.push_str(&line(&[(); N].map(|()| "---".to_owned())));
    text.extend(rows.into_iter().map(|row| line(&row)));
    text
}

/// The text in lines of limited length. The first begins with `start`, the others are indented as
/// much.
pub(crate) fn wrapped(start: &str, text: &str) -> String {
    let indent = " ".repeat(start.chars().count());
    let mut lines = vec![start.to_owned()];
    let mut fresh = true;
    for word in text.split_whitespace() {
        let line = lines.last().map_or(0, |line| line.chars().count());
        if !fresh && line + 1 + word.chars().count() > MAX_COLUMNS {
            lines.push(indent.clone());
            fresh = true;
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(if fresh { "" } else { " " });
            line.push_str(word);
        }
        fresh = false;
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_escapes_the_bars_of_its_cells() {
        let text = table(["a", "b"], [["`x|y`".to_owned(), "z".to_owned()]]);
        assert_eq!(text, "| a | b |\n| --- | --- |\n| `x\\|y` | z |\n");
    }

    #[test]
    fn text_is_wrapped_at_100_columns_and_indented() {
        let text = wrapped("- ", &"word ".repeat(50));
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 3 && lines.iter().all(|line| line.len() <= 100), "{text}");
        assert!(lines[0].starts_with("- word") && lines[1].starts_with("  word"), "{text}");
    }
}
