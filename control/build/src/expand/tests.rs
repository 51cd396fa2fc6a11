use super::*;
use proptest::prelude::*;

fn look_up(name: &str) -> Option<String> {
    match name {
        "foo" => Some("bar".into()),
        "empty" => Some(String::new()),
        "path" => Some("/usr/local/lib".into()),
        "str" => Some("foobarbaz".into()),
        "loop" => Some("$loop".into()),
        _ => None,
    }
}

fn expanded(text: &str) -> String {
    expand(text, '\\', &look_up).unwrap_or_else(|reason| format!("error: {reason}"))
}

/// The cases of the Dockerfile reference and of BuildKit's tables.
#[test]
fn variables_are_expanded_as_documented() {
    for (text, result) in [
        ("hello $foo", "hello bar"),
        ("${foo}_x", "bar_x"),
        ("$foo_x", ""),
        (r"\$foo", "$foo"),
        (r"\${foo}", "${foo}"),
        ("'$foo'", "$foo"),
        ("\"$foo\"", "bar"),
        ("\"'$foo'\"", "'bar'"),
        (r#""\$foo""#, "$foo"),
        (r#""a\"b""#, "a\"b"),
        (r#""a\nb""#, r"a\nb"),
        (r"he\llo", "hello"),
        ("$", "$"),
        ("a$ b", "a$ b"),
        ("$1x", "x"),
        ("${none:-word}", "word"),
        ("${foo:-word}", "bar"),
        ("${empty:-word}", "word"),
        ("${empty-word}", ""),
        ("${none-word}", "word"),
        ("${none:+word}", ""),
        ("${foo:+word}", "word"),
        ("${empty:+word}", ""),
        ("${empty+word}", "word"),
        ("${none:-$foo}", "bar"),
        ("${none:-${none:-deep}}", "deep"),
        ("${none:-'a b'}", "a b"),
        ("${foo:?no}", "bar"),
        ("$loop", "$loop"),
        ("${path#*/}", "usr/local/lib"),
        ("${path##*/}", "lib"),
        ("${path%/*}", "/usr/local"),
        ("${path%%/*}", ""),
        ("${str#fo?}", "barbaz"),
        ("${str/ba?/x}", "fooxbaz"),
        ("${str//ba?/x}", "fooxx"),
        ("${str/none/x}", "foobarbaz"),
    ] {
        assert_eq!(expanded(text), result, "{text}");
    }
}

#[test]
fn what_cannot_be_expanded_is_refused_with_a_reason() {
    for (text, reason) in [
        ("${foo", "closing"),
        ("${none:?is missing}", "none: is missing"),
        ("${none?}", "none is not set"),
        ("${}", "no name"),
        ("${foo:=x}", "not supported"),
        ("${foo^}", "not supported"),
        ("'open", "not closed"),
        ("\"open", "not closed"),
    ] {
        let result = expanded(text);
        assert!(result.starts_with("error:") && result.contains(reason), "{text}: {result}");
    }
    let deep = format!("{}x{}", "${none:-".repeat(100), "}".repeat(100));
    assert!(expanded(&deep).contains("deep"));
}

#[test]
fn another_escape_character_leaves_backslashes_alone() {
    assert_eq!(expand(r"c:\$foo", '`', &look_up).unwrap(), r"c:\bar");
    assert_eq!(expand("`$foo", '`', &look_up).unwrap(), "$foo");
}

#[test]
fn a_here_document_keeps_its_quotes() {
    let text = "a='$foo' \"\\$foo\" \\n\n";
    assert_eq!(expand_text(text, '\\', &look_up).unwrap(), "a='bar' \"$foo\" \\n\n");
}

#[test]
fn words_end_at_spaces_that_are_not_quoted() {
    let words = split_words(r#"a=1  b="c d" e=f\ g h='i "j' "#, '\\');
    assert_eq!(words, ["a=1", "b=\"c d\"", r"e=f\ g", "h='i \"j'"]);
}

proptest! {
    #[test]
    fn any_text_is_expanded_or_refused(text in "[\\\\$a-c{}:/#%?*'\" -]{0,60}") {
        let _ = expand(&text, '\\', &look_up);
        let _ = split_words(&text, '\\');
    }
}
