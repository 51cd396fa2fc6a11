use proptest::prelude::*;

use crate::api::http::{BODY_BYTES_MAX, Error, HEAD_BYTES_MAX, Method, Progress, parse};

const PUT: &[u8] = b"PUT /vsock HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}";

#[test]
fn a_whole_message_is_read_with_its_length() {
    let mut two = PUT.to_vec();
    two.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
    let Progress::Complete(message) = parse(&two).unwrap() else { panic!("not complete") };
    assert_eq!((message.method, message.path, message.body), (Method::Put, "/vsock", &b"{}"[..]));
    assert!(message.keep_alive);
    assert_eq!(message.message_bytes, PUT.len());
}

#[test]
fn every_beginning_of_a_message_is_partial() {
    for length in 0..PUT.len() {
        match parse(&PUT[..length]).unwrap() {
            Progress::Partial { needed_bytes, continue_expected } => {
                assert!(needed_bytes > length && needed_bytes <= PUT.len(), "{length}");
                assert!(!continue_expected);
            }
            complete => panic!("{length}: {complete:?}"),
        }
    }
}

#[test]
fn a_client_may_wait_for_the_word_to_continue() {
    let head = b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    let partial = Progress::Partial { needed_bytes: head.len() + 2, continue_expected: true };
    assert_eq!(parse(head).unwrap(), partial);
    let mut more = head.to_vec();
    more.push(b'{');
    let partial = Progress::Partial { needed_bytes: head.len() + 2, continue_expected: false };
    assert_eq!(parse(&more).unwrap(), partial);
}

#[test]
fn the_connection_lasts_as_long_as_the_client_says() {
    for (text, keep_alive) in [
        ("GET / HTTP/1.1\r\n\r\n", true),
        ("GET / HTTP/1.0\r\n\r\n", false),
        ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ("GET / HTTP/1.1\r\nConnection: Close\r\n\r\n", false),
        ("GET / HTTP/1.1\r\nConnection: keep-alive, close\r\n\r\n", false),
    ] {
        let Progress::Complete(message) = parse(text.as_bytes()).unwrap() else { panic!("{text}") };
        assert_eq!(message.keep_alive, keep_alive, "{text}");
    }
}

#[test]
fn an_absolute_target_is_its_path() {
    for (target, path) in [("http://localhost/a/b", "/a/b"), ("http://localhost", "/")] {
        let text = format!("GET {target} HTTP/1.1\r\n\r\n");
        let Progress::Complete(message) = parse(text.as_bytes()).unwrap() else { panic!("{text}") };
        assert_eq!(message.path, path);
    }
}

#[test]
fn what_is_not_a_message_of_ours_is_refused() {
    let head = |header: &str| format!("PUT / HTTP/1.1\r\n{header}\r\n\r\n");
    let too_large = Error::BodyTooLarge { body_bytes: 51_201 };
    for (text, error) in [
        (head("Content-Length: 51201"), too_large),
        (head("Content-Length: 1e99"), Error::ContentLength),
        (head("Content-Length: +1"), Error::ContentLength),
        (head("Content-Length: -1"), Error::ContentLength),
        (head("Content-Length:"), Error::ContentLength),
        (head("Content-Length: 1\r\nContent-Length: 1"), Error::ContentLength),
        (head("Content-Length: 1, 1"), Error::ContentLength),
        (
            head(&format!("Content-Length: {}", "9".repeat(99))),
            Error::BodyTooLarge { body_bytes: u64::MAX },
        ),
        (head("Transfer-Encoding: chunked"), Error::TransferEncoding),
        (head("Transfer-Encoding: identity\r\nContent-Length: 1"), Error::TransferEncoding),
        (head("Expect: a miracle"), Error::Expectation),
        ("POST / HTTP/1.1\r\n\r\n".into(), Error::Method { method: "POST".into() }),
        ("get / HTTP/1.1\r\n\r\n".into(), Error::Method { method: "get".into() }),
        ("GET * HTTP/1.1\r\n\r\n".into(), Error::Target),
        ("GET https://h/ HTTP/1.1\r\n\r\n".into(), Error::Target),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(HEAD_BYTES_MAX)), Error::HeadTooLarge),
    ] {
        assert_eq!(parse(text.as_bytes()), Err(error), "{text}");
    }
    for text in [
        "GET / HTTP/2.0\r\n\r\n",
        "\0",
        "GET / HTTP/1.1\r\nbad header\r\n\r\n",
        "GET / HTTP/1.1\r\nContent-Length : 1\r\n\r\n",
        &head(&"a: b\r\n".repeat(65)),
    ] {
        assert!(matches!(parse(text.as_bytes()), Err(Error::Malformed { .. })), "{text}");
    }
}

#[test]
fn the_largest_body_fits() {
    let mut bytes =
        format!("PUT / HTTP/1.1\r\nContent-Length: {BODY_BYTES_MAX}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + BODY_BYTES_MAX, b' ');
    assert!(matches!(parse(&bytes), Ok(Progress::Complete(_))));
}

proptest! {
    #[test]
    fn no_bytes_can_panic_the_parser(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn a_message_never_claims_more_than_the_buffer_has(
        method in "(GET|PUT|PATCH|POST)",
        path in "[ -~]{0,40}",
        header in "(content-length|connection|expect|x): [ -~]{0,12}",
        length in 0usize..64,
        body in proptest::collection::vec(any::<u8>(), 0..64),
        cut in 0usize..256,
    ) {
        let mut bytes = format!(
            "{method} /{path} HTTP/1.1\r\n{header}\r\nContent-Length: {length}\r\n\r\n"
        ).into_bytes();
        bytes.extend_from_slice(&body);
        bytes.truncate(cut);
        match parse(&bytes) {
            Ok(Progress::Complete(message)) => {
                prop_assert!(message.message_bytes <= bytes.len());
                prop_assert!(message.body.len() <= BODY_BYTES_MAX);
                let _ = crate::api::route(message.method, message.path, message.body);
            }
            Ok(Progress::Partial { needed_bytes, .. }) => {
                prop_assert!(needed_bytes > bytes.len());
                prop_assert!(needed_bytes <= HEAD_BYTES_MAX + BODY_BYTES_MAX);
            }
            Err(_) => {}
        }
    }
}
