//! Tables for people, JSON for programs.

use std::{fs, path::Path};

use anyhow::Context;
use serde::Serialize;

/// A table with one row per thing compared.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Self {
        Self { rows: vec![header.into_iter().map(str::to_owned).collect()] }
    }

    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// First column to the left, figures to the right, two spaces between.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows
                .iter()
                .filter_map(|row| row.get(column))
                .map(|cell| cell.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let padded =
                    if column == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
                line.push_str(&padded);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A figure with its ratio to another: `8.42 (1.17)`; `-` where one is missing.
pub(crate) fn with_ratio(value: Option<f64>, base: Option<f64>, decimals: usize) -> String {
    match (value, base) {
        (Some(value), Some(base)) if base > 0.0 => format!("{value:.decimals$} ({:.2})", value / base),
        (value, _) => plain(value, decimals),
    }
}

/// A figure, or `-`.
pub(crate) fn plain(value: Option<f64>, decimals: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}"))
}

/// Writes `DIR/NAME.json`.
pub(crate) fn write_json(dir: &Path, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
    let path = dir.join(format!("{name}.json"));
    fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let text = serde_json::to_string_pretty(value).context("write JSON")?;
    fs::write(&path, text + "\n").with_context(|| format!("write {}", path.display()))?;
    println!("written: {}", path.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_ratios_stand_beside_figures() {
        let mut table = Table::new(["", "kpps"]);
        table.row(["underlay".to_owned(), with_ratio(Some(250.0), Some(250.0), 0)]);
        table.row(["bridge + VXLAN".to_owned(), with_ratio(Some(110.0), Some(250.0), 0)]);
        table.row(["Mesh".to_owned(), with_ratio(None, Some(250.0), 0)]);
        let expected = "                      kpps\nunderlay        250 (1.00)\nbridge + VXLAN  110 (0.44)\nMesh                     -\n";
        assert_eq!(table.render(), expected);
    }
}
