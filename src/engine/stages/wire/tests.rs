use proptest::prelude::*;

use super::*;

fn body(frame: &[u8]) -> Frame {
    let mut stream = frame;
    let read = Frame::read(&mut stream).expect("a frame").expect("not the end");
    assert!(stream.is_empty());
    read
}

fn run(bytes: &[u8]) -> Run<'_> {
    Run {
        group: 3,
        prompts: true,
        logits: false,
        rows: vec![vec![1, 2, 3], vec![], vec![u32::MAX]],
        tensors: vec![
            Tensor { name: "hidden".to_owned(), element: 1, dims: vec![3, 1], bytes },
            Tensor { name: "nothing".to_owned(), element: 7, dims: vec![0], bytes: &[] },
        ],
    }
}

#[test]
fn frames_are_read_as_they_were_written() {
    let bytes = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
    let Frame::Run(read) = body(&run(&bytes).frame()) else { panic!("a run") };
    assert_eq!(Run::parse(&read).expect("a run"), run(&bytes));
    let answer = Answer { group: 1, tokens: vec![7, 8], logits: vec![0.5, f32::NEG_INFINITY] };
    let Frame::Answer(read) = body(&answer.frame()) else { panic!("an answer") };
    assert_eq!(Answer::parse(&read).expect("an answer"), answer);
    let begin = Begin { sizes: vec![2, 1], capacity: 9 };
    let Frame::Begin(read) = body(&begin.frame()) else { panic!("a beginning") };
    assert_eq!(Begin::parse(&read).expect("a beginning"), begin);
    let control = Control::Hello { secret: "x".to_owned(), stage: 2, listens: None };
    assert_eq!(body(&control.frame()), Frame::Control(control));
    assert!(Frame::read(&mut &b""[..]).expect("the end").is_none());
}

#[test]
fn another_version_is_refused_by_name() {
    let mut frame = Control::Alive.frame();
    frame[4] = 9;
    let error = Frame::read(&mut &frame[..]).unwrap_err();
    assert!(error.chain().contains("version 9"), "{}", error.chain());
    frame[0] = b'x';
    assert!(Frame::read(&mut &frame[..]).unwrap_err().chain().contains("no stage"));
}

#[test]
fn what_breaks_off_is_an_error() {
    let bytes = [0; 12];
    let frame = run(&bytes).frame();
    for end in 1..frame.len() {
        assert!(Frame::read(&mut &frame[..end]).is_err(), "{end}");
    }
    let Frame::Run(read) = body(&frame) else { panic!("a run") };
    for end in 0..read.len() {
        assert!(Run::parse(&read[..end]).is_err(), "{end}");
    }
    let mut long = Control::Alive.frame();
    long[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(Frame::read(&mut &long[..]).is_err());
    long[8..16].copy_from_slice(&(1_u64 << 35).to_le_bytes());
    assert!(Frame::read(&mut &long[..]).is_err());
}

proptest! {
    #[test]
    fn whatever_comes_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Frame::read(&mut &bytes[..]);
        let _ = Run::parse(&bytes);
        let _ = Answer::parse(&bytes);
        let _ = Begin::parse(&bytes);
    }

    #[test]
    fn a_frame_with_a_wrong_byte_is_read_or_refused(place in 0..200_usize, value: u8) {
        let bytes = [7; 12];
        let mut frame = run(&bytes).frame();
        let place = place % frame.len();
        frame[place] = value;
        if let Ok(Some(Frame::Run(body))) = Frame::read(&mut &frame[..]) {
            let _ = Run::parse(&body);
        }
    }
}
