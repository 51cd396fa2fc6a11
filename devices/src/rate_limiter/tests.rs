use proptest::prelude::*;

use super::*;

const MS: Duration = Duration::from_millis(1);

fn limiter(bandwidth: Option<Rate>, ops: Option<Rate>, now: Instant) -> RateLimiter {
    let change = |rate: Option<Rate>| rate.map_or(Change::Keep, Change::Limit);
    let mut limiter = RateLimiter::default();
    limiter.change(Changes { bandwidth: change(bandwidth), ops: change(ops) }, now);
    limiter
}

#[test]
fn without_limits_nobody_waits() {
    let mut limiter = RateLimiter::default();
    limiter.spend(u64::MAX);
    assert!(limiter.is_unlimited() && limiter.wait(Instant::now()).is_none());
}

#[test]
fn zero_means_no_limit() {
    assert_eq!(Rate::new(0, 7, MS), None);
    assert_eq!(Rate::new(7, 7, Duration::ZERO), None);
}

#[test]
fn a_bucket_begins_full_with_its_burst_and_then_fills_in_its_time() {
    let start = Instant::now();
    let mut limiter = limiter(Rate::new(1000, 500, 100 * MS), None, start);
    limiter.spend(1499);
    assert_eq!(limiter.wait(start), None, "one is left");
    limiter.spend(1);
    assert_eq!(limiter.wait(start), Some(MS / 10), "the time of one token");
    assert_eq!(limiter.wait(start + MS), None);
    limiter.spend(1009); // of ten
    assert_eq!(limiter.wait(start + MS), Some(100 * MS));
    // However long nobody asks: no more than its size, and the burst does not come back.
    assert_eq!(limiter.wait(start + 10_000 * MS), None);
    limiter.spend(1000);
    assert!(limiter.wait(start + 10_000 * MS).is_some());
}

#[test]
fn both_limits_count_and_each_can_be_changed_alone() {
    let start = Instant::now();
    let mut limiter = limiter(Rate::new(1000, 0, MS), Rate::new(2, 0, MS), start);
    limiter.spend(1);
    assert_eq!(limiter.wait(start), None);
    limiter.spend(1);
    assert!(limiter.wait(start).is_some(), "two requests, though small");
    limiter.change(Changes { ops: Change::Lift, ..Changes::default() }, start);
    assert_eq!(limiter.wait(start), None);
    limiter.spend(5000);
    assert!(limiter.wait(start).is_some(), "the other limit has stayed");
    let full = Change::Limit(Rate::new(1, 0, MS).unwrap());
    limiter.change(Changes { bandwidth: full, ..Changes::default() }, start);
    assert_eq!(limiter.wait(start), None, "a new bucket owes nothing");
}

#[test]
fn the_largest_numbers_are_numbers_like_others() {
    let start = Instant::now();
    let mut limiter =
        limiter(Rate::new(u64::MAX, u64::MAX, REFILL_TIME_MAX), Rate::new(1, 0, MS), start);
    for _ in 0..10 {
        limiter.spend(u64::MAX);
    }
    let wait = limiter.wait(start).unwrap();
    assert!(wait > REFILL_TIME_MAX, "{wait:?}");
    assert_eq!(limiter.wait(start + wait), None);
}

proptest! {
    #[test]
    fn nobody_gets_more_than_the_rate_and_nobody_waits_too_long(
        size in 1_u64..1 << 40,
        one_time_burst in 0_u64..1 << 40,
        refill_ms in 1_u64..100_000,
        steps in proptest::collection::vec((0_u64..1 << 40, 0_u64..10_000_000_000), 1..100),
    ) {
        let rate = Rate::new(size, one_time_burst, Duration::from_millis(refill_ms)).unwrap();
        let start = Instant::now();
        let mut now = start;
        let mut limiter = limiter(Some(rate), None, start);
        let mut spent: u128 = 0;
        for (cost, pause_ns) in steps {
            if let Some(wait) = limiter.wait(now) {
                prop_assert!(limiter.wait(now + wait - Duration::from_nanos(1)).is_some());
                now += wait;
                prop_assert_eq!(limiter.wait(now), None);
            }
            limiter.spend(cost);
            spent += u128::from(cost);
            let elapsed_ns = (now - start).as_nanos();
            let earned = elapsed_ns * u128::from(size) / (u128::from(refill_ms) * 1_000_000);
            // The last request may have overdrawn it.
            let allowed = earned + u128::from(size) + u128::from(one_time_burst) + u128::from(cost);
            prop_assert!(spent <= allowed + 1, "{} of {}", spent, allowed);
            now += Duration::from_nanos(pause_ns);
        }
    }

    #[test]
    fn a_clock_that_goes_back_gives_nothing(pause_ms in 0_u64..1000) {
        let start = Instant::now();
        let mut limiter = limiter(Rate::new(10, 0, 10 * MS), None, start);
        limiter.spend(20);
        let later = start + Duration::from_millis(pause_ms);
        let wait = limiter.wait(later);
        limiter.wait(start);
        prop_assert_eq!(limiter.wait(later), wait);
    }
}
