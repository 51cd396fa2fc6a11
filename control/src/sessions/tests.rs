use std::sync::atomic::{AtomicI64, Ordering};

use super::*;

struct World {
    sessions: Sessions,
    time: Arc<AtomicI64>,
    _directory: tempfile::TempDir,
}

fn world(policies: &[&str]) -> World {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(&directory.path().join("x.db")).unwrap());
    let written: Result<(), StoreError> = store.write(|transaction| {
        let sql = "INSERT INTO role VALUES ('Run', 'id', '/', 0, '{}', NULL, 3600)";
        transaction.execute(sql, []).map_err(StoreError::at("put a role"))?;
        for policy in policies {
            let arn = format!("arn:aws:iam::aws:policy/{policy}");
            let sql = "INSERT INTO attached_policy VALUES ('Run', ?1)";
            transaction.execute(sql, [arn]).map_err(StoreError::at("attach"))?;
        }
        Ok(())
    });
    written.unwrap();
    let time = Arc::new(AtomicI64::new(1_800_000_000_000));
    let clock = Clock::Manual(Arc::clone(&time));
    let sessions = Sessions { seal: Seal::new(b"secret"), store, clock };
    World { sessions, time, _directory: directory }
}

const ROLE: &str = "arn:aws:iam::000000000000:role/Run";

#[test]
fn credentials_are_good_for_an_hour_and_with_their_own_token() {
    let world = world(&[]);
    let mint = || world.sessions.mint("microvm-1", ROLE).unwrap().unwrap();
    let (one, other) = (mint(), mint());
    let key = &one.credentials.access_key_id;
    let session = world.sessions.verify(key, &one.token).unwrap();
    assert_eq!((session.role.as_str(), session.microvm.as_str()), ("Run", "microvm-1"));
    assert_eq!(world.sessions.secret(key), one.credentials.secret_access_key);
    assert_ne!(one.credentials.secret_access_key, other.credentials.secret_access_key);
    assert_eq!(world.sessions.verify(key, &other.token), None);
    world.time.fetch_add(3_600_000, Ordering::SeqCst);
    assert_eq!(world.sessions.verify(key, &one.token), None);
    let missing = "arn:aws:iam::000000000000:role/Missing";
    assert!(world.sessions.mint("microvm-1", missing).unwrap().is_none());
}

#[test]
fn a_session_may_what_its_role_is_known_for_and_never_touch_the_fleet() {
    let cases: [(&[&str], [bool; 4]); 5] = [
        (&[], [false; 4]),
        (&["AmazonS3ReadOnlyAccess"], [true, false, false, false]),
        (&["AmazonS3FullAccess"], [true, true, false, false]),
        (&["service-role/AWSLambdaBasicExecutionRole"], [false, false, false, true]),
        (&["AdministratorAccess"], [true; 4]),
    ];
    for (policies, expected) in cases {
        let world = world(policies);
        let minted = world.sessions.mint("microvm-1", ROLE).unwrap().unwrap();
        let key = &minted.credentials.access_key_id;
        let session = world.sessions.verify(key, &minted.token).unwrap();
        let may = |service, is_read| world.sessions.allows(&session, service, is_read).unwrap();
        let found = [may("s3", true), may("s3", false), may("logs", true), may("logs", false)];
        assert_eq!(found, expected, "{policies:?}");
        assert!(may("sts", true) && !may("lambda", true) && !may("iam", true));
    }
}
