use proptest::prelude::*;

use super::*;

fn address(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}

fn verdicts(json: &str) -> Verdicts {
    let host = Ranges::of(&["192.0.2.1/32".parse().unwrap(), "10.231.0.0/16".parse().unwrap()]);
    Policy::parse(json).unwrap().verdicts(&host)
}

fn reaches(json: &str, to: &str) -> bool {
    verdicts(json).addresses.contains(address(to))
}

#[test]
fn the_tables_of_addresses_are_read_whole() {
    assert_eq!(networks(NEVER).len(), NEVER.len());
    assert_eq!(networks(PRIVATE).len(), PRIVATE.len());
}

#[test]
fn no_policy_reaches_nothing() {
    let nothing = verdicts("{}");
    assert_eq!(nothing.addresses, Ranges::default());
    assert!(!nothing.allows_name("example.org") && !nothing.metadata);
}

#[test]
fn the_internet_is_every_public_address_and_no_other() {
    let internet = r#"{"allow": ["internet"]}"#;
    for public in ["1.1.1.1", "198.51.100.7", "203.0.113.1", "223.255.255.255", "9.255.255.255"] {
        assert!(reaches(internet, public), "{public}");
    }
    let others = ["10.0.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "127.0.0.1"];
    let special = ["169.254.169.254", "224.0.0.1", "255.255.255.255", "0.0.0.0", "192.0.2.1"];
    for private in others.into_iter().chain(special) {
        assert!(!reaches(internet, private), "{private}");
    }
}

#[test]
fn a_private_range_is_allowed_by_naming_it_and_not_by_a_wider_one() {
    assert!(reaches(r#"{"allow": ["10.1.0.0/16"]}"#, "10.1.2.3"));
    assert!(!reaches(r#"{"allow": ["0.0.0.0/0"]}"#, "10.1.2.3"));
    assert!(reaches(r#"{"allow": ["0.0.0.0/0"]}"#, "8.8.8.8"));
    assert!(reaches(r#"{"allow": ["internet", "192.168.7.7"]}"#, "192.168.7.7"));
}

#[test]
fn nobody_reaches_link_local_or_the_host_by_naming_it() {
    for named in ["169.254.169.254/32", "192.0.2.1/32", "10.231.0.0/16", "127.0.0.0/8"] {
        let policy = format!(r#"{{"allow": ["{named}"]}}"#);
        assert_eq!(verdicts(&policy).addresses, Ranges::default(), "{named}");
    }
}

#[test]
fn what_is_denied_is_denied_also_to_a_name() {
    let policy = r#"{"allow": ["internet", "example.org"], "deny": ["203.0.113.0/24"]}"#;
    assert!(!reaches(policy, "203.0.113.9"));
    assert!(!verdicts(policy).allows_answer(address("203.0.113.9")));
    assert!(verdicts(policy).allows_answer(address("203.0.114.9")));
}

#[test]
fn a_name_is_allowed_exactly_and_a_wildcard_below_itself() {
    let policy = verdicts(r#"{"allow": ["Example.org", "*.cdn.example.net"]}"#);
    for name in ["example.org", "EXAMPLE.ORG.", "a.cdn.example.net", "a.b.cdn.example.net."] {
        assert!(policy.allows_name(name), "{name}");
    }
    let others = ["www.example.org", "badexample.org", "cdn.example.net", ".cdn.example.net"];
    for name in others.into_iter().chain([
        "xcdn.example.net",
        "example.org.evil.test",
        "",
        r"a\.cdn.example.net",
    ]) {
        assert!(!policy.allows_name(name), "{name}");
    }
}

#[test]
fn a_name_does_not_open_the_hosts_network() {
    let policy = verdicts(r#"{"allow": ["example.org"]}"#);
    assert!(policy.allows_answer(address("198.51.100.1")));
    for inside in ["10.0.0.1", "169.254.169.254", "127.0.0.1", "192.168.0.1", "192.0.2.1"] {
        assert!(!policy.allows_answer(address(inside)), "{inside}");
    }
    let with_range = verdicts(r#"{"allow": ["db.corp.test", "10.1.0.0/16"]}"#);
    assert!(with_range.allows_answer(address("10.1.0.9")));
    assert!(!with_range.allows_answer(address("10.2.0.9")));
}

#[test]
fn an_error_names_the_entry_and_what_may_stand_there() {
    for entry in ["", "exa mple.org", "*.*.org", "1.2.3", "münchen.de", "fe80::/10", "a..b", "*"] {
        let error = Policy::parse(&format!(r#"{{"allow": ["{entry}"]}}"#)).unwrap_err();
        let Error::Json(cause) = error else { panic!("{entry}: {error}") };
        assert!(cause.to_string().contains("is nothing that can be allowed"), "{entry}: {cause}");
    }
    let error = Policy::parse(r#"{"allow": ["10.0.0.1/8"]}"#).unwrap_err().to_string();
    assert!(error.contains("10.0.0.0/8"), "{error}");
    assert!(Policy::parse(r#"{"alow": []}"#).is_err());
    let many = format!(r#"{{"deny": [{}"1.0.0.0/8"]}}"#, r#""1.0.0.0/8","#.repeat(ENTRIES_MAX));
    assert!(matches!(Policy::parse(&many), Err(Error::TooMany { field: "deny", .. })));
}

#[test]
fn a_policy_is_written_as_it_is_read() {
    let json = r#"{"allow":["internet","10.0.0.0/8","*.a.test","b.test"],"deny":["1.0.0.0/8"],"metadata":true}"#;
    assert_eq!(serde_json::to_string(&Policy::parse(json).unwrap()).unwrap(), json);
}

proptest! {
    #[test]
    fn no_text_breaks_a_policy(text in ".{0,80}") {
        let _an_error_will_do = text.parse::<Destination>();
        let _an_error_will_do = Policy::parse(&text);
    }

    #[test]
    fn whatever_is_allowed_the_forbidden_stays_out(low in any::<u32>(), prefix in 0u8..=32) {
        let range = Ipv4Net::new_assert(Ipv4Addr::from(low), prefix).trunc();
        let policy = Policy { allow: vec![Destination::Range(range)], ..Policy::none() };
        let verdicts = policy.verdicts(&Ranges::default());
        for never in networks(NEVER) {
            prop_assert!(!verdicts.addresses.contains(never.network()));
            prop_assert!(!verdicts.addresses.contains(never.broadcast()));
        }
    }
}
