//! The threat model names a test for each of its claims: the tests must exist.

use std::collections::BTreeSet;

/// Tests that a document names: code spans of the form `crate::test`.
pub fn named_tests(document: &str) -> BTreeSet<(String, String)> {
    let word = |text: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|character| character.is_ascii_alphanumeric() || "_-".contains(character))
    };
    document
        .split('`')
        .skip(1)
        .step_by(2)
        .filter_map(|span| span.split_once("::"))
        .filter(|(package, test)| word(package) && word(test))
        .map(|(package, test)| (package.to_owned(), test.to_owned()))
        .collect()
}

/// Whether source holds a function of that name under a `#[test]` attribute or in a property test's block.
pub fn holds_test(source: &str, name: &str) -> bool {
    let function = format!("fn {name}(");
    source.match_indices(&function).any(|(at, _)| {
        let before = &source[..at];
        let near = before.rfind('}').map_or(before, |end| &before[end..]);
        near.contains("test]") || near.contains("test(") || before.contains("proptest!")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_found() {
        let found = named_tests("a `graph::any_bytes`, `std::env::var`, `x`, text::more, `node::a b`");
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("graph".to_owned(), "any_bytes".to_owned())]
        );
    }

    #[test]
    fn only_tests_count() {
        assert!(holds_test("#[test]\nfn a() {}", "a"));
        assert!(holds_test("fn x() {}\n#[tokio::test]\nasync fn a() {}", "a"));
        assert!(holds_test("proptest! {\n #[test]\n fn a(x in 0..1) {}\n}", "a"));
        assert!(!holds_test("#[test]\nfn b() {}\nfn a() {}", "a"));
        assert!(!holds_test("#[test]\nfn ab() {}", "a"));
    }
}
