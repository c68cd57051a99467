use std::fmt::Write as _;

use super::*;

fn parsed(text: &str) -> Result<Node, Invalid> {
    let mut document = parse(text)?;
    fill(&mut document, &[("PORT".to_owned(), "8080".to_owned())].into(), &mut Vec::new())?;
    Ok(document)
}

fn field<'a>(node: &'a Node, path: &[&str]) -> Item<'a> {
    path.iter().fold(Item::root(node), |item, key| item.section().unwrap().take(key).unwrap())
}

#[test]
fn malformed_yaml_is_reported_with_its_line() {
    for (text, line) in [
        ("a: [1\nb: 2", 2),
        ("a: 1\na: 2\n", 2),
        ("a:\n\t- b\n", 2),
        ("a: 1\n---\nb: 2\n", 3),
        ("x: 1\na: *nope\n", 2),
    ] {
        assert_eq!(parsed(text).unwrap_err().line, line, "{text:?}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_is_named_with_its_path_and_line() {
    let node = parsed("a:\n  b:\n    - [x]\n").unwrap();
    let error = field(&node, &["a", "b"]).list().unwrap()[0].text().unwrap_err();
    assert_eq!((error.line, error.to_string().as_str()), (3, "a.b[0]: it must be text, not a list"));
}

#[test]
fn a_port_pair_is_text_and_not_a_number_to_base_sixty() {
    let node = parsed("p: 22:22\nv: 010\nyes: on\n").unwrap();
    assert_eq!(field(&node, &["p"]).text().unwrap(), "22:22");
    assert_eq!(field(&node, &["v"]).text().unwrap(), "010");
    assert_eq!(field(&node, &["yes"]).text().unwrap(), "on");
}

#[test]
fn variables_and_merged_maps_are_filled_in() {
    let node = parsed("x: &x {p: \"${PORT}:80\", q: \"${NONE:-1}\"}\ny:\n  <<: *x\n  q: 2\n").unwrap();
    assert_eq!(field(&node, &["y", "p"]).text().unwrap(), "8080:80");
    assert_eq!(field(&node, &["y", "q"]).text().unwrap(), "2");
    assert_eq!(field(&node, &["x", "q"]).text().unwrap(), "1");
}

#[test]
fn keys_that_are_not_taken_are_reported_with_their_paths() {
    let node = parsed("services:\n  a:\n    ports: 1\n    build: {d: 2}\n").unwrap();
    let mut section = field(&node, &["services", "a"]).section().unwrap();
    section.take("ports").unwrap();
    let mut ignored = Vec::new();
    section.finish(&mut ignored);
    let why = Why::Container("build".into());
    assert_eq!(ignored, [Ignored { line: 4, key: "services.a.build".into(), why }]);
}

#[test]
fn any_number_of_aliases_is_read_if_the_expanded_size_is_limited() {
    let mut many = "x: &x {a: 1}\nlist:\n".to_owned();
    many.push_str(&"  - *x\n".repeat(5000));
    assert!(parsed(&many).is_ok());
    // A large file without aliases is legitimate.
    assert!(parsed(&format!("list:\n{}", "  - a\n".repeat(450_000))).is_ok());
    let anchored = format!("x: &x\n{}y: *x\n", "  - a\n".repeat(60_000));
    assert!(matches!(parsed(&anchored).unwrap_err().reason, Reason::TooLarge));
    let mut laughs = "a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]\n".to_owned();
    for n in 1..12 {
        let aliases = vec![format!("*a{}", n - 1); 10].join(", ");
        writeln!(laughs, "a{n}: &a{n} [{aliases}]").unwrap();
    }
    let error = parsed(&laughs).unwrap_err();
    assert!(matches!(error.reason, Reason::TooLarge), "{error}");
    let long = format!("x: &x {}\nlist: [{}]\n", "y".repeat(1 << 20), vec!["*x"; 1000].join(","));
    assert!(matches!(parsed(&long).unwrap_err().reason, Reason::TooLarge));
}
