//! The body of an answer: all at once, or a stream with a bounded number of pieces in memory.

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;

/// A body.
#[derive(Debug)]
pub enum Body {
    /// All of it; `None` once it was taken.
    Full(Option<Bytes>),
    /// Pieces from a task; an error cuts the answer off.
    Stream {
        /// Where they come from.
        pieces: mpsc::Receiver<io::Result<Bytes>>,
        /// How many bytes there will be, if that is known.
        length_bytes: Option<u64>,
    },
}

impl Body {
    /// A body that is there.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Body::Full(Some(bytes.into()))
    }

    /// No body.
    #[must_use]
    pub fn empty() -> Self {
        Body::Full(None)
    }
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut *self {
            Body::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Body::Stream { pieces, .. } => {
                pieces.poll_recv(context).map(|piece| piece.map(|piece| piece.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Body::Stream { length_bytes, .. } => *length_bytes == Some(0),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Body::Stream { length_bytes: Some(length), .. } => SizeHint::with_exact(*length),
            Body::Stream { length_bytes: None, .. } => SizeHint::default(),
        }
    }
}
