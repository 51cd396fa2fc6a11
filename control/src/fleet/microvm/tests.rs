use super::*;

const EVENTS: [Event; 14] = [
    Event::Suspend,
    Event::Resume,
    Event::Terminate,
    Event::Request,
    Event::Idle,
    Event::Expired,
    Event::Launched,
    Event::LaunchFailed,
    Event::Suspended,
    Event::SuspendFailed,
    Event::Resumed,
    Event::ResumeFailed,
    Event::Exited,
    Event::Terminated,
];

/// Every event in every phase. `-` stays, `?` is refused, `x` is refused because it has ended; else the
/// phase it goes to, and `!` if the worker has to do something.
const TABLE: &str = "
                Launching    Running      Suspending   Suspended    Resuming     Waking       Terminating Terminated
 Suspend        ?            Suspending!  -            -            ?            ?            x           x
 Resume         ?            -            ?            Resuming!    -            -            x           x
 Terminate      Terminating! Terminating! Terminating! Terminating! Terminating! Terminating! -           -
 Request        -            -            -            Waking!      -            -            -           -
 Idle           -            Suspending!  -            -            -            -            -           -
 Expired        Terminating! Terminating! Terminating! Terminating! Terminating! Terminating! -           -
 Launched       Running      -            -            -            -            -            -           -
 LaunchFailed   Terminating! -            -            -            -            -            -           -
 Suspended      -            -            Suspended    -            -            -            -           -
 SuspendFailed  -            -            Running      -            -            -            -           -
 Resumed        -            -            -            -            Running      Running      -           -
 ResumeFailed   -            -            -            -            Suspended    Suspended    -           -
 Exited         Terminating! Terminating! Terminating! Terminating! Terminating! Terminating! -           -
 Terminated     -            -            -            -            -            -            Terminated  -
";

#[test]
fn every_event_in_every_phase_is_as_the_table_says() {
    let mut lines = TABLE.lines().filter(|line| !line.trim().is_empty());
    let phases: Vec<String> = Phase::ALL.iter().map(|phase| format!("{phase:?}")).collect();
    let head: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(head, phases);
    for event in EVENTS {
        let words: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(words[0], format!("{event:?}"));
        for (phase, wanted) in Phase::ALL.into_iter().zip(&words[1..]) {
            let found = match phase.next(event) {
                Step::Stay => "-".to_owned(),
                Step::Refuse => "?".to_owned(),
                Step::RefuseEnded => "x".to_owned(),
                Step::Go(to, Order::None) => format!("{to:?}"),
                Step::Go(to, _) => format!("{to:?}!"),
            };
            assert_eq!(found, *wanted, "{event:?} in {phase:?}");
        }
    }
    assert_eq!(lines.next(), None);
}

#[test]
fn an_order_is_what_the_phase_waits_for() {
    for phase in Phase::ALL {
        for event in EVENTS {
            let Step::Go(to, order) = phase.next(event) else { continue };
            let wanted = match to {
                Phase::Suspending => Order::Suspend,
                Phase::Resuming | Phase::Waking => Order::Resume,
                Phase::Terminating => Order::Terminate,
                _ => Order::None,
            };
            assert_eq!(order, wanted, "{event:?} in {phase:?}");
        }
    }
}

#[test]
fn whatever_happens_a_microvm_can_be_ended_and_stays_so() {
    for phase in Phase::ALL {
        let ending = match phase.next(Event::Terminate) {
            Step::Go(to, _) => to,
            Step::Stay => phase,
            step => panic!("{step:?}"),
        };
        assert!(!ending.is_alive());
    }
    for event in EVENTS {
        assert!(!matches!(Phase::Terminated.next(event), Step::Go(..)), "{event:?}");
    }
}
