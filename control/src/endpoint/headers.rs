//! Headers that are for one connection and not for the other (RFC 9110, section 7.6.1), and ours.

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, HeaderValue, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRANSFER_ENCODING, UPGRADE,
};

/// Our own headers begin so; the app sees none of them.
pub const PLATFORM_PREFIX: &str = "x-aws-proxy-";
pub const AUTHENTICATION: &str = "x-aws-proxy-auth";
pub const PORT: &str = "x-aws-proxy-port";
pub const FORCE_HTTP2: &str = "x-aws-proxy-force-h2";

/// What a connection's headers are besides those that `Connection` names.
const HOP_BY_HOP: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
];

/// Removes what was for the connection that a request came on, and what was for us.
pub fn strip_request(headers: &mut HeaderMap) {
    let wants_trailers = words(headers, &TE).any(|word| word.eq_ignore_ascii_case("trailers"));
    // A length beside chunks is how one proxy's body becomes another's request.
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
    // `100 Continue` is ours to say: hyper does, when the body is asked for.
    headers.remove(EXPECT);
    let ours: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(PLATFORM_PREFIX)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    // gRPC insists on it, and it is true: trailers pass.
    if wants_trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes what was for the connection that a response came on.
pub fn strip_response(headers: &mut HeaderMap) {
    if headers.contains_key(TRANSFER_ENCODING) {
        headers.remove(CONTENT_LENGTH);
    }
    strip_hop_by_hop(headers);
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> =
        words(headers, &CONNECTION).filter_map(|word| word.parse().ok()).collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The words of a header that is a list.
pub fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(lines: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_is_for_one_connection_does_not_pass() {
        let mut headers = map(&[
            ("connection", "close, X-Named"),
            ("connection", "x-too"),
            ("x-named", "1"),
            ("x-too", "1"),
            ("keep-alive", "1"),
            ("te", "gzip, trailers"),
            ("upgrade", "h2c"),
            ("proxy-authorization", "secret"),
            ("expect", "100-continue"),
            ("x-aws-proxy-auth", "token"),
            ("x-aws-proxy-anything", "1"),
            ("x-aws-other", "1"),
            ("host", "h"),
        ]);
        strip_request(&mut headers);
        assert_eq!(names(&headers), ["host", "te", "x-aws-other"]);
        assert_eq!(headers[TE], "trailers");
    }

    #[test]
    fn a_length_beside_chunks_does_not_pass() {
        let both = [("transfer-encoding", "chunked"), ("content-length", "5")];
        let (mut request, mut response) = (map(&both), map(&both));
        strip_request(&mut request);
        strip_response(&mut response);
        assert!(request.is_empty() && response.is_empty());
        let mut alone = map(&[("content-length", "5")]);
        strip_response(&mut alone);
        assert_eq!(names(&alone), ["content-length"]);
    }
}
