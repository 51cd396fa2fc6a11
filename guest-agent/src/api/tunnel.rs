//! `CONNECT host:port`: bytes to and from a TCP port of the guest.

use super::body::Body;
use super::error::{ApiError, chain};
use super::{Answer, Context, Incomer};
use crate::limits::{TUNNEL_BUFFER_BYTES, TUNNEL_CONNECT_TIMEOUT};
use hyper::{Response, StatusCode};
use hyper_util::rt::TokioIo;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::net::TcpStream;

/// The header by which a client asks for addresses beyond the loopback.
const SCOPE_HEADER: &str = "rotifer-tunnel";

pub(super) async fn connect(context: Context, request: Incomer) -> Answer {
    let any_address = match request.headers().get(SCOPE_HEADER) {
        None => false,
        Some(value) if value.as_bytes() == b"any" => true,
        Some(_) => return Err(ApiError::bad_request("the only value of rotifer-tunnel is any")),
    };
    let authority = request.uri().authority().map_or("", |authority| authority.as_str());
    let target = dial(&targets(authority, any_address)?).await?;
    tokio::task::spawn_local(async move {
        let _room = context.connection;
        let Ok(upgraded) = hyper::upgrade::on(request).await else { return };
        let mut host = TokioIo::new(upgraded);
        let mut target = target;
        // Either side may end first, and the other goes on; a reset ends both.
        let _ = tokio::io::copy_bidirectional_with_sizes(
            &mut host,
            &mut target,
            TUNNEL_BUFFER_BYTES,
            TUNNEL_BUFFER_BYTES,
        )
        .await;
    });
    Ok(Response::new(Body::empty()))
}

/// The addresses that `host:port` means. Names are not resolved: a static program has no resolver,
/// and the guest's may lie.
fn targets(authority: &str, any_address: bool) -> Result<Vec<SocketAddr>, ApiError> {
    let bad = || {
        let message = format!("{authority:?} is neither ADDRESS:PORT nor localhost:PORT");
        ApiError::new(StatusCode::BAD_REQUEST, "bad_target", message)
    };
    let (host, port) = authority.rsplit_once(':').ok_or_else(bad)?;
    let port: u16 = port.parse().ok().filter(|port| *port > 0).ok_or_else(bad)?;
    if host.eq_ignore_ascii_case("localhost") {
        let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        return Ok(vec![v4, SocketAddr::from((Ipv6Addr::LOCALHOST, port))]);
    }
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address: IpAddr = host.parse().map_err(|_| bad())?;
    if !address.to_canonical().is_loopback() && !any_address {
        let message = format!("{address} is not a loopback address of the guest");
        return Err(ApiError::new(StatusCode::FORBIDDEN, "not_loopback", message));
    }
    Ok(vec![SocketAddr::new(address, port)])
}

async fn dial(targets: &[SocketAddr]) -> Result<TcpStream, ApiError> {
    let attempt = async {
        let mut refusals = Vec::new();
        for target in targets {
            match TcpStream::connect(target).await {
                Ok(stream) => {
                    // Latency is what tunnels are measured by; that it fails changes nothing else.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Err(error) => refusals.push(format!("{target}: {}", chain(&error))),
            }
        }
        let message = format!("cannot connect to {}", refusals.join(" nor to "));
        Err(ApiError::new(StatusCode::BAD_GATEWAY, "cannot_connect", message))
    };
    tokio::time::timeout(TUNNEL_CONNECT_TIMEOUT, attempt).await.unwrap_or_else(|_| {
        let message = format!("{targets:?} did not answer within {TUNNEL_CONNECT_TIMEOUT:?}");
        Err(ApiError::new(StatusCode::GATEWAY_TIMEOUT, "connect_timeout", message))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_reached_unless_asked_otherwise() {
        assert_eq!(targets("localhost:80", false).unwrap().len(), 2);
        assert!(targets("127.9.9.9:80", false).is_ok());
        assert!(targets("[::1]:80", false).is_ok());
        for target in ["10.0.0.1:80", "[fe80::1]:80", "0.0.0.0:80", "[::ffff:10.0.0.1]:80"] {
            assert_eq!(targets(target, false).unwrap_err().code, "not_loopback", "{target}");
            assert!(targets(target, true).is_ok(), "{target}");
        }
    }

    #[test]
    fn targets_that_are_none_are_refused() {
        for target in ["", "localhost", "localhost:", "localhost:0", "localhost:70000", "a.b:80"] {
            assert_eq!(targets(target, true).unwrap_err().code, "bad_target", "{target}");
        }
    }
}
