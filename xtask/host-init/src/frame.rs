//! Frames on a byte stream that may begin or break off in the middle of one.
//!
//! A virtio-serial port outlives its clients: one that is killed leaves half a frame behind, and
//! the next one must not stumble over it. So a frame stands between two [`FLAG`] bytes, which never
//! occur inside it, and carries its own length:
//!
//! ```text
//! FLAG  escaped( kind: u8  session: u32  length: u32  payload: length bytes )  FLAG
//! ```
//!
//! What arrives between two flags and does not add up is dropped.

/// Begins and ends every frame.
const FLAG: u8 = 0x7e;
/// Announces that the next byte was a [`FLAG`] or an [`ESCAPE`], with [`FLIP`] applied.
const ESCAPE: u8 = 0x7d;
const FLIP: u8 = 0x20;
const HEADER_BYTES: usize = 9;

/// The largest payload: the arguments and the environment of a job.
pub const PAYLOAD_MAX_BYTES: usize = 1 << 20;

/// One frame, not yet understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is; the meaning is [`crate::message`]'s.
    pub kind: u8,
    /// The client's connection that this belongs to; strays of an earlier one are ignored.
    pub session: u32,
    /// At most [`PAYLOAD_MAX_BYTES`] bytes.
    pub payload: Vec<u8>,
}

impl Frame {
    /// The bytes to send.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + HEADER_BYTES + 16);
        out.push(FLAG);
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        escape(&[self.kind], &mut out);
        escape(&self.session.to_le_bytes(), &mut out);
        escape(&length.to_le_bytes(), &mut out);
        escape(&self.payload, &mut out);
        out.push(FLAG);
        out
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let (header, payload) = body.split_at_checked(HEADER_BYTES)?;
        let (kind, numbers) = header.split_first()?;
        let (session, length) = numbers.split_at_checked(4)?;
        let session = u32::from_le_bytes(session.try_into().ok()?);
        let length = u32::from_le_bytes(length.try_into().ok()?);
        (usize::try_from(length) == Ok(payload.len())).then(|| Self {
            kind: *kind,
            session,
            payload: payload.to_vec(),
        })
    }
}

fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for &byte in bytes {
        if byte == FLAG || byte == ESCAPE {
            out.extend_from_slice(&[ESCAPE, byte ^ FLIP]);
        } else {
            out.push(byte);
        }
    }
}

/// Finds the frames in a stream, however it is cut into pieces.
#[derive(Default)]
pub struct Decoder {
    body: Vec<u8>,
    escaped: bool,
    /// More came between two flags than a frame can have: drop until the next flag.
    overlong: bool,
}

impl Decoder {
    /// Takes the next piece of the stream; appends every whole frame to `frames`.
    pub fn feed(&mut self, piece: &[u8], frames: &mut Vec<Frame>) {
        for &byte in piece {
            match byte {
                FLAG => {
                    if !self.overlong && !self.escaped {
                        frames.extend(Frame::decode(&self.body));
                    }
                    *self = Self { body: std::mem::take(&mut self.body), ..Self::default() };
                    self.body.clear();
                }
                ESCAPE => self.escaped = true,
                _ if self.body.len() >= HEADER_BYTES + PAYLOAD_MAX_BYTES => self.overlong = true,
                _ if std::mem::take(&mut self.escaped) => self.body.push(byte ^ FLIP),
                _ => self.body.push(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(stream: &[u8]) -> Vec<Frame> {
        let mut frames = Vec::new();
        Decoder::default().feed(stream, &mut frames);
        frames
    }

    fn frame(session: u32, payload: &[u8]) -> Frame {
        Frame { kind: 7, session, payload: payload.to_vec() }
    }

    #[test]
    fn every_byte_value_survives_a_frame() {
        let all: Vec<u8> = (0..=255).collect();
        let frames = [frame(0x7e7d_7d7e, &all), frame(1, &[]), frame(2, &[FLAG; 300])];
        let stream: Vec<u8> = frames.iter().flat_map(Frame::encode).collect();
        assert_eq!(decode(&stream), frames);
    }

    #[test]
    fn a_stream_may_be_cut_anywhere() {
        let sent = [frame(1, b"one~}"), frame(2, b"two")];
        let stream: Vec<u8> = sent.iter().flat_map(Frame::encode).collect();
        for cut in 0..stream.len() {
            let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
            decoder.feed(&stream[..cut], &mut frames);
            decoder.feed(&stream[cut..], &mut frames);
            assert_eq!(frames, sent, "cut at {cut}");
        }
    }

    #[test]
    fn half_a_frame_does_not_harm_the_next_one() {
        let (old, new) = (frame(1, b"left behind }~ by a killed client"), frame(2, b"new"));
        let old = old.encode();
        // One that lacks only its closing flag is whole: the session tells it apart.
        for cut in 0..old.len() - 1 {
            let stream = [&old[..cut], &new.encode()].concat();
            assert_eq!(decode(&stream), std::slice::from_ref(&new), "cut at {cut}");
        }
    }

    #[test]
    fn an_endless_frame_takes_bounded_memory_and_is_dropped() {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        decoder.feed(&[FLAG], &mut frames);
        for _ in 0..40 {
            decoder.feed(&[b'x'; 65536], &mut frames);
        }
        assert!(decoder.body.len() <= HEADER_BYTES + PAYLOAD_MAX_BYTES);
        decoder.feed(&frame(3, b"after").encode(), &mut frames);
        assert_eq!(frames, [frame(3, b"after")]);
    }
}
