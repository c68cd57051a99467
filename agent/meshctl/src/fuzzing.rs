//! Entry points for the fuzz targets in `tests/fuzz`.

use std::collections::HashMap;

use crate::apply::{Given, read};

/// Reads a Compose file with one variable set.
pub fn compose_file(text: &str) {
    let variables = HashMap::from([("PORT".to_owned(), "8080".to_owned())]);
    let given = Given { project: "project".to_owned(), variables, profiles: Vec::new() };
    if let Err(error) = read(text, given) {
        assert!(!error.to_string().is_empty(), "an error says what is wrong");
    }
}
