//! What a request asks of an endpoint: with what token, for which port, and how.

use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderValue, UPGRADE};
use hyper::http::request::Parts;
use hyper::{Method, Version};

use super::grant::SHELL_PORT;
use super::headers::{AUTHENTICATION, FORCE_HTTP2, PORT, words};

/// Where apps listen unless a request says otherwise.
const DEFAULT_PORT: u16 = 8080;
/// What browsers have to offer among a WebSocket's subprotocols; they cannot send headers.
pub const MARKER: &str = "lambda-microvms";
const TOKEN_PREFIX: &str = "lambda-microvms.authentication.";
const PORT_PREFIX: &str = "lambda-microvms.port.";
const SUBPROTOCOL: hyper::header::HeaderName = hyper::header::SEC_WEBSOCKET_PROTOCOL;

/// A request's wishes.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked {
    /// The token, unless there is none, or more than one.
    pub token: Option<String>,
    /// The port, if it is one; nothing if none was named.
    pub port: Option<Result<u16, ()>>,
    /// Whether it is to become a WebSocket.
    pub is_websocket: bool,
    /// Whether the client offered the marker, and must be told a subprotocol.
    pub offers_marker: bool,
    /// Whether it offers our own protocol beside the shell's.
    pub offers_stream: bool,
    /// Whether the app is to be spoken to in HTTP/2.
    pub is_http2: bool,
}

impl Asked {
    /// Reads a request.
    pub fn of(parts: &Parts) -> Self {
        let headers = &parts.headers;
        let is_websocket = is_websocket(parts);
        let offered: Vec<&str> =
            if is_websocket { words(headers, &SUBPROTOCOL).collect() } else { Vec::new() };
        let offers_marker = offered.contains(&MARKER);
        let offers_stream = offered.contains(&super::stream::SUBPROTOCOL);
        // Without the marker nothing else of it counts.
        let after = |prefix: &str| {
            let found = offered.iter().filter_map(|word| word.strip_prefix(prefix));
            found.filter(|_| offers_marker).map(str::to_owned).collect::<Vec<_>>()
        };
        let token = only(values(headers, AUTHENTICATION)).or_else(|| only(after(TOKEN_PREFIX)));
        let mut ports = values(headers, PORT);
        if ports.is_empty() {
            ports = after(PORT_PREFIX);
        }
        let port =
            (!ports.is_empty()).then(|| only(ports).and_then(|text| number(&text)).ok_or(()));
        let is_grpc = headers
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let is_forced = headers.get(FORCE_HTTP2).is_some_and(|value| value == "true");
        let is_http2 = !is_websocket && (is_forced || is_grpc);
        Self { token, port, is_websocket, offers_marker, offers_stream, is_http2 }
    }

    /// The port of the app.
    pub fn app_port(&self) -> Option<u16> {
        self.port.unwrap_or(Ok(DEFAULT_PORT)).ok()
    }

    /// Whether the port is a shell's.
    pub fn is_shell_port(&self) -> bool {
        self.port.unwrap_or(Ok(SHELL_PORT)) == Ok(SHELL_PORT)
    }
}

/// Leaves only the subprotocols that are the app's.
pub fn strip_subprotocols(headers: &mut HeaderMap) {
    let is_ours = |word: &str| {
        word.strip_prefix(MARKER).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let rest: Vec<&str> = words(headers, &SUBPROTOCOL).filter(|word| !is_ours(word)).collect();
    let rest = HeaderValue::from_str(&rest.join(", ")).ok().filter(|rest| !rest.is_empty());
    match rest {
        Some(rest) => headers.insert(SUBPROTOCOL, rest),
        None => headers.remove(SUBPROTOCOL),
    };
}

fn is_websocket(parts: &Parts) -> bool {
    let has = |name, wanted: &str| {
        words(&parts.headers, &name).any(|word| word.eq_ignore_ascii_case(wanted))
    };
    parts.method == Method::GET
        && parts.version == Version::HTTP_11
        && has(UPGRADE, "websocket")
        && has(CONNECTION, "upgrade")
}

/// The texts of a header.
fn values(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter();
    values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
}

fn only(mut values: Vec<String>) -> Option<String> {
    if values.len() == 1 { values.pop() } else { None }
}

fn number(text: &str) -> Option<u16> {
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| is_digits && *port > 0)
}

#[cfg(test)]
mod tests {
    use hyper::Request;

    use super::*;

    fn ask(lines: &[(&str, &str)]) -> Asked {
        let mut request = Request::get("https://h/");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        Asked::of(&request.body(()).unwrap().into_parts().0)
    }

    const SOCKET: [(&str, &str); 2] =
        [("upgrade", "websocket"), ("connection", "keep-alive, Upgrade")];

    #[test]
    fn a_header_says_more_than_a_subprotocol() {
        let asked = ask(&[("x-aws-proxy-auth", "t"), ("x-aws-proxy-port", "9000")]);
        assert_eq!((asked.token.as_deref(), asked.app_port()), (Some("t"), Some(9000)));
        let offer =
            "lambda-microvms, lambda-microvms.port.81, lambda-microvms.authentication.u, chat";
        let mut lines = SOCKET.to_vec();
        lines.push(("sec-websocket-protocol", offer));
        let asked = ask(&lines);
        assert_eq!((asked.token.as_deref(), asked.app_port()), (Some("u"), Some(81)));
        lines.extend([("x-aws-proxy-auth", "t"), ("x-aws-proxy-port", "82")]);
        let asked = ask(&lines);
        assert_eq!((asked.token.as_deref(), asked.app_port()), (Some("t"), Some(82)));
    }

    #[test]
    fn subprotocols_count_on_websockets_and_with_the_marker_only() {
        let offer = ("sec-websocket-protocol", "lambda-microvms, lambda-microvms.authentication.u");
        assert_eq!(ask(&[offer]).token, None);
        let unmarked = ("sec-websocket-protocol", "lambda-microvms.authentication.u");
        assert_eq!(ask(&[SOCKET[0], SOCKET[1], unmarked]).token, None);
        assert_eq!(ask(&[SOCKET[0], SOCKET[1], offer]).token.as_deref(), Some("u"));
    }

    #[test]
    fn what_is_not_one_port_is_none() {
        assert_eq!(ask(&[]).app_port(), Some(8080));
        for wrong in ["0", "65536", "-1", "+80", " 80x", "", "8080, 8081"] {
            assert_eq!(ask(&[("x-aws-proxy-port", wrong)]).app_port(), None, "{wrong}");
        }
        let twice = [("x-aws-proxy-port", "80"), ("x-aws-proxy-port", "81")];
        assert_eq!(ask(&twice).app_port(), None);
        assert_eq!(ask(&[("x-aws-proxy-auth", "a"), ("x-aws-proxy-auth", "b")]).token, None);
    }

    #[test]
    fn the_app_sees_its_own_subprotocols_only() {
        let left = |offer: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(SUBPROTOCOL, offer.parse().unwrap());
            strip_subprotocols(&mut headers);
            headers.get(SUBPROTOCOL).map(|value| value.to_str().unwrap().to_owned())
        };
        let offer = "lambda-microvms, chat, lambda-microvms.authentication.u, lambda-microvmsx, v2";
        assert_eq!(left(offer).as_deref(), Some("chat, lambda-microvmsx, v2"));
        assert_eq!(left("lambda-microvms,lambda-microvms.port.1"), None);
    }
}
