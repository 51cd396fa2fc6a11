//! WebSockets: the app answers the handshake, and then bytes go to and fro.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use s3s::Body;
use tokio::io::copy_bidirectional;

use super::asked::Asked;
use super::gates::Pass;
use super::guarded::Guarded;
use super::{Refusal, choose_marker, headers, mark_websocket, nothing, prepare};
use crate::http::Place;

/// Passes a handshake on. If the app wants no WebSocket, its answer is the answer.
pub async fn open(
    mut request: Request<Incoming>,
    port: u16,
    asked: &Asked,
    pass: Pass,
    mut place: Place,
) -> Result<Response<Body>, Refusal> {
    let client = hyper::upgrade::on(&mut request);
    let mut request = prepare(request);
    mark_websocket(request.headers_mut());
    let upstreams = pass.upstreams();
    let mut response = tokio::select! {
        sent = upstreams.send(request, port, false) => {
            sent.map_err(|error| nothing(pass.gate(), port, &error))?
        }
        () = pass.cut() => return Err(Refusal::Nothing),
    };
    headers::strip_response(response.headers_mut());
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let (parts, body) = response.into_parts();
        let body = Guarded::new(body, pass, place);
        return Ok(Response::from_parts(parts, Body::http_body_unsync(body)));
    }
    let app = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let pump = async {
            let (mut client, mut app) = (TokioIo::new(client.await?), TokioIo::new(app.await?));
            let copied = copy_bidirectional(&mut client, &mut app).await;
            tracing::debug!("a WebSocket has ended: {copied:?}");
            Ok::<_, hyper::Error>(())
        };
        tokio::select! {
            result = pump => if let Err(error) = result {
                tracing::debug!("a connection did not become a WebSocket: {error}");
            },
            () = pass.cut() => {}
            () = place.end() => {}
        }
    });
    let (mut parts, _) = response.into_parts();
    mark_websocket(&mut parts.headers);
    choose_marker(&mut parts.headers, asked);
    Ok(Response::from_parts(parts, Body::empty()))
}
