//! A look at Rust source that is good enough for house rules: comments, strings and test items are blanked.

/// The source with comments, string and character literals, and items under `#[cfg(test)]` replaced by spaces;
/// line breaks stay, so that line numbers hold.
pub fn product_code(source: &str) -> String {
    without_test_items(&without_text(source))
}

/// Lines (from 1) on which `word` stands as a whole path or identifier.
pub fn lines_with<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |byte: Option<&u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_');
    code.lines().enumerate().filter_map(move |(index, line)| {
        line.match_indices(word)
            .any(|(at, _)| {
                let bytes = line.as_bytes();
                !part(at.checked_sub(1).and_then(|before| bytes.get(before))) && !part(bytes.get(at + word.len()))
            })
            .then_some(index + 1)
    })
}

/// Blanks comments (nested ones too), strings (raw and byte ones too) and character literals.
fn without_text(source: &str) -> String {
    let bytes = source.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = match bytes[at] {
            b'/' if bytes.get(at + 1) == Some(&b'/') => line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => comment_end(bytes, at),
            b'"' => string_end(bytes, at + 1),
            b'r' if !identifier_before(bytes, at) => raw_string_end(bytes, at + 1).unwrap_or(at + 1),
            b'\'' => character_end(bytes, at).unwrap_or(at + 1),
            _ => at + 1,
        };
        if end > at + 1 {
            blank(&mut out, at, end);
        }
        at = end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn blank(out: &mut [u8], start: usize, end: usize) {
    let end = end.min(out.len());
    for byte in &mut out[start..end] {
        if *byte != b'\n' {
            *byte = b' ';
        }
    }
}

fn identifier_before(bytes: &[u8], at: usize) -> bool {
    at.checked_sub(1).is_some_and(|before| {
        let byte = bytes[before];
        (byte.is_ascii_alphanumeric() && byte != b'b' && byte != b'c') || byte == b'_'
    })
}

fn line_end(bytes: &[u8], at: usize) -> usize {
    bytes[at..]
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(bytes.len(), |length| at + length)
}

fn comment_end(bytes: &[u8], at: usize) -> usize {
    let (mut depth, mut at) = (0usize, at);
    while at < bytes.len() {
        match (bytes[at], bytes.get(at + 1)) {
            (b'/', Some(b'*')) => (depth, at) = (depth + 1, at + 2),
            (b'*', Some(b'/')) if depth == 1 => return at + 2,
            (b'*', Some(b'/')) => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn string_end(bytes: &[u8], mut at: usize) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// The end of `#*"..."#*`, where `at` is just behind the `r`; none when this is no raw string.
fn raw_string_end(bytes: &[u8], at: usize) -> Option<usize> {
    let marks = bytes[at..].iter().take_while(|byte| **byte == b'#').count();
    if bytes.get(at + marks) != Some(&b'"') {
        return None;
    }
    let body = at + marks + 1;
    let closes = |start: usize| {
        bytes[start] == b'"' && bytes[start + 1..].iter().take_while(|byte| **byte == b'#').count() >= marks
    };
    (body..bytes.len())
        .find(|start| closes(*start))
        .map(|start| start + 1 + marks)
}

/// The end of a character literal; none for a lifetime.
fn character_end(bytes: &[u8], at: usize) -> Option<usize> {
    if bytes.get(at + 1) == Some(&b'\\') {
        let close = bytes.get(at + 3..)?.iter().take(12).position(|byte| *byte == b'\'')?;
        return Some(at + 3 + close + 1);
    }
    // One character of up to four bytes, then the quote.
    let text = std::str::from_utf8(bytes.get(at + 1..(at + 5).min(bytes.len()))?).or_else(|error| {
        let valid = error.valid_up_to();
        std::str::from_utf8(&bytes[at + 1..at + 1 + valid])
    });
    let end = at + 1 + text.ok()?.chars().next()?.len_utf8();
    (bytes.get(end) == Some(&b'\'')).then_some(end + 1)
}

/// Blanks each item that `#[cfg(test)]` (also inside `all(...)`) guards: up to its `;` or to its closing brace.
fn without_test_items(code: &str) -> String {
    let mut out = code.as_bytes().to_vec();
    let mut from = 0;
    while let Some(found) = code.get(from..).and_then(|rest| rest.find("#[cfg(")) {
        let start = from + found;
        let Some(length) = code[start..].find(']') else { break };
        let attribute = &code[start..start + length];
        from = start + length;
        if !attribute.contains("not(test") && lines_with(attribute, "test").next().is_some() {
            let end = item_end(code.as_bytes(), from);
            blank(&mut out, start, end);
            from = end;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn item_end(bytes: &[u8], from: usize) -> usize {
    let mut depth = 0usize;
    for (at, byte) in bytes.iter().enumerate().skip(from) {
        match byte {
            b';' if depth == 0 => return at + 1,
            b'{' => depth += 1,
            b'}' if depth <= 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(source: &str, word: &str) -> Vec<usize> {
        lines_with(&product_code(source), word).collect()
    }

    #[test]
    fn comments_and_strings_do_not_count() {
        let source = "// unsafe\n/* unsafe /* unsafe */ unsafe */ fn a() {}\nlet s = \"unsafe \\\" unsafe\";\n\
                      let r = r#\"unsafe \" unsafe\"#; let b = br\"unsafe\";\nlet c = '\"'; unsafe {}\n/// unsafe\n";
        assert_eq!(lines(source, "unsafe"), [5]);
    }

    #[test]
    fn lifetimes_are_no_characters() {
        assert_eq!(
            lines(
                "fn a<'a>(x: &'a str) { unsafe {} }\nlet c = '\\u{1F600}'; let d = 'é'; unsafe",
                "unsafe"
            ),
            [1, 2]
        );
    }

    #[test]
    fn words_are_whole() {
        assert_eq!(lines("#![forbid(unsafe_code)]\nnot_unsafe\nx.unsafe()", "unsafe"), [3]);
        assert_eq!(
            lines("std::env::var(x)\nmystd::env::var\nstd::environment", "std::env"),
            [1]
        );
    }

    #[test]
    fn test_items_do_not_count() {
        let source = "#[cfg(test)]\nmod tests {\n fn a() { unsafe {} }\n}\nfn b() { unsafe {} }\n\
                      #[cfg(all(test, unix))]\nuse unsafe_thing;\n#[cfg(not(test))]\nfn c() { unsafe {} }\n#[cfg(test)]\nmod more;\nunsafe";
        assert_eq!(lines(source, "unsafe"), [5, 9, 12]);
    }

    #[test]
    fn cut_source_ends() {
        for source in [
            "\"abc",
            "/* abc",
            "r#\"abc",
            "'\\",
            "'",
            "#[cfg(test)",
            "#[cfg(test)] mod a {",
            "/",
        ] {
            assert_eq!(product_code(source).len(), source.len(), "{source}");
        }
    }
}
