use super::*;
use proptest::prelude::*;

fn any_frame() -> impl Strategy<Value = Frame> {
    let bytes = proptest::collection::vec(any::<u8>(), 0..2000);
    prop_oneof![
        bytes.clone().prop_map(Frame::Stdin),
        Just(Frame::StdinEof),
        any::<u8>().prop_map(Frame::Signal),
        any::<(u16, u16)>().prop_map(|(rows, columns)| Frame::Resize { rows, columns }),
        bytes.clone().prop_map(Frame::Stdout),
        bytes.clone().prop_map(Frame::Stderr),
        any::<u32>().prop_map(Frame::Window),
        bytes.prop_map(Frame::Exit),
    ]
}

proptest! {
    #[test]
    fn frames_survive_any_division_into_pieces(
        frames in proptest::collection::vec(any_frame(), 0..8),
        piece_bytes in 1usize..700,
    ) {
        let mut wire = Vec::new();
        for frame in &frames {
            frame.encode(&mut wire);
        }
        let mut parser = Parser::new();
        let mut seen = Vec::new();
        for piece in wire.chunks(piece_bytes) {
            parser.feed(piece);
            while let Some(frame) = parser.next_frame().unwrap() {
                seen.push(frame);
            }
        }
        prop_assert_eq!(seen, frames);
    }

    #[test]
    fn random_bytes_are_parsed_or_refused_with_bounded_memory(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..40),
    ) {
        let mut parser = Parser::new();
        'stream: for piece in &pieces {
            parser.feed(piece);
            loop {
                match parser.next_frame() {
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => break 'stream,
                }
            }
            prop_assert!(parser.buffer.len() <= HEADER_BYTES + FRAME_PAYLOAD_MAX_BYTES + 300);
        }
    }
}

#[test]
fn a_length_beyond_the_limit_is_refused_from_the_header_alone() {
    let mut parser = Parser::new();
    parser.feed(&[STDIN, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(parser.next_frame(), Err(FrameError::TooLong { kind: STDIN, length: u32::MAX }));
}

#[test]
fn an_unknown_kind_is_refused() {
    let mut parser = Parser::new();
    parser.feed(&[99, 0, 0, 0, 0]);
    assert_eq!(parser.next_frame(), Err(FrameError::UnknownKind { kind: 99 }));
}

#[test]
fn a_resize_of_three_bytes_is_refused() {
    let mut parser = Parser::new();
    parser.feed(&[RESIZE, 0, 0, 0, 3, 1, 2, 3]);
    assert_eq!(parser.next_frame(), Err(FrameError::WrongLength { kind: RESIZE, length: 3 }));
}
