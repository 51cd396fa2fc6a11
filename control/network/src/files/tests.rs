use super::*;

fn files() -> (tempfile::TempDir, Files) {
    let directory = tempfile::tempdir().unwrap();
    let files = Files::open(directory.path()).unwrap();
    (directory, files)
}

fn record(slot: u32) -> Record {
    Record { slot, policy: Policy::internet(), generation: 1, owner: None }
}

#[test]
fn a_name_is_a_file_and_nothing_more() {
    for name in ["a", "microvm-0b9e", "7", &"x".repeat(63)] {
        assert!(name.parse::<Name>().is_ok(), "{name}");
    }
    for name in ["", "-a", "a/b", "..", "A", "a b", "ä", "a.json", &"x".repeat(64)] {
        let error = name.parse::<Name>().unwrap_err().to_string();
        assert!(error.contains("a-z, 0-9"), "{error}");
    }
}

#[test]
fn a_number_is_leased_once() {
    let (_directory, files) = files();
    let leased: Vec<_> = (0..3).map(|_| files.lease(2).unwrap()).collect();
    assert_eq!(leased, [Some(0), Some(1), None]);
    remove(&files.slot(0)).unwrap();
    assert_eq!(files.lease(2).unwrap(), Some(0));
}

#[test]
fn two_networks_of_one_name_are_one_too_many() {
    let (_directory, files) = files();
    let path = files.network(&"vm".parse().unwrap());
    assert!(files.write(&path, &record(1), false).unwrap());
    assert!(!files.write(&path, &record(2), false).unwrap());
    assert_eq!(files.record(&"vm".parse().unwrap()).unwrap(), Some(record(1)));
    assert_eq!(list(&files.networks()).unwrap(), ["vm.json"]);
}

#[test]
fn a_writer_that_was_killed_leaves_the_old_record() {
    let (_directory, files) = files();
    let name: Name = "vm".parse().unwrap();
    files.write(&files.network(&name), &record(1), false).unwrap();
    let whole = serde_json::to_string(&record(9)).unwrap();
    for length in 0..whole.len() {
        let partial = files.networks().join("vm.77.partial");
        fs::write(&partial, &whole[..length]).unwrap();
        let records = files.records().unwrap();
        assert_eq!(records.known.into_values().collect::<Vec<_>>(), [record(1)]);
    }
    files.remove_partial().unwrap();
    assert_eq!(list(&files.networks()).unwrap(), ["vm.json"]);
}

#[test]
fn a_namespace_of_the_pool_is_taken_once() {
    let (_directory, files) = files();
    let prepared = Prepared { policy: Policy::internet(), host: vec![Ipv4Addr::LOCALHOST] };
    files.add_ready(3, &prepared).unwrap();
    assert_eq!(files.ready().unwrap(), [3]);
    assert_eq!(files.take_ready().unwrap(), Some((3, Some(prepared))));
    assert_eq!(files.take_ready().unwrap(), None);
}

#[test]
fn what_cannot_be_understood_hides_nothing_else() {
    let (_directory, files) = files();
    files.write(&files.network(&"vm".parse().unwrap()), &record(1), false).unwrap();
    fs::write(files.networks().join("odd.json"), "{}").unwrap();
    let records = files.records().unwrap();
    assert_eq!(records.known.into_values().collect::<Vec<_>>(), [record(1)]);
    let [error] = &records.unreadable[..] else { panic!("{:?}", records.unreadable) };
    assert!(error.to_string().contains("odd.json"), "{error}");
    fs::write(files.pooled(3), "no JSON").unwrap();
    assert_eq!(files.take_ready().unwrap(), Some((3, None)));
}

#[test]
fn a_process_is_alive_until_it_has_ended() {
    let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
    let owner = Owner::of(child.id().try_into().unwrap()).unwrap();
    assert!(owner.is_alive());
    assert!(!Owner { start: owner.start + 1, ..owner }.is_alive());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!owner.is_alive());
}

#[test]
fn a_configuration_is_checked() {
    let (_directory, files) = files();
    let with = |text: &str| {
        fs::write(files.root().join("config.json"), text).unwrap();
        files.config()
    };
    assert_eq!(with(r#"{"mtu": 1400}"#).unwrap().mtu, 1400);
    for (text, named) in [
        (r#"{"subnet": "10.0.0.1/8"}"#, "subnet is 10.0.0.1/8"),
        (r#"{"subnet": "10.0.0.0/31"}"#, "subnet is"),
        (r#"{"mtu": 576}"#, "mtu is 576"),
        (r#"{"mtuu": 1500}"#, "repair or remove"),
    ] {
        let error = with(text).unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
