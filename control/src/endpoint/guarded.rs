//! The body of an app's answer: while it is on its way, somebody is at the microVM.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::gates::Pass;
use crate::http::Place;

/// A body that ends with an error when the microVM goes away under it.
pub struct Guarded {
    body: Incoming,
    cut: Pin<Box<dyn Future<Output = ()> + Send>>,
    _pass: Pass,
    _place: Place,
}

impl Guarded {
    /// Keeps the pass, and the client's connection from being idle, as long as the body lives.
    pub fn new(body: Incoming, pass: Pass, place: Place) -> Self {
        Self { body, cut: Box::pin(pass.cut()), _pass: pass, _place: place }
    }
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|result| result.map_err(Into::into)));
        }
        self.cut.as_mut().poll(context).map(|()| {
            let text = "the microVM was suspended or has ended";
            Some(Err(io::Error::new(io::ErrorKind::ConnectionAborted, text).into()))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
