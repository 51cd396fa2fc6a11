//! What the service models of boto3 have, and what the daemon answers.

mod world;

use rotifer_control::settings::{Quotas, Rates, Settings};
use world::{World, python, sees};

/// Time does not pass by itself here: so many requests of each operation pass, and no more.
fn rates(all: u32) -> Rates {
    Rates { run: all, resume: all, suspend: all, terminate: all, token: all, other: all }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_has_a_success_and_each_modelled_error() {
    let many = Settings { rates: rates(100_000), ..Settings::default() };
    let quotas = Quotas {
        images: 1,
        versions_per_image: 1,
        network_connectors: 1,
        memory_mib: 0,
        ..Quotas::default()
    };
    let world = World::with(many.clone()).await;
    let poor = World::with(Settings { quotas, ..many }).await;
    let hurried = World::bare(Settings { rates: rates(1), ..Settings::default() }).await;
    world.iam("Action=CreateRole&Version=2010-05-08&RoleName=Run&AssumeRolePolicyDocument=%7B%7D");
    let role = "arn:aws:iam::000000000000:role/Run";
    let session = world.front.services.sessions.mint("microvm-x", role).unwrap().unwrap();
    let keys = session.credentials;
    let keys = [keys.access_key_id, keys.secret_access_key, session.token].join(" ");
    let mut command = python("errors.py");
    command.args([&world, &poor, &hurried].map(|it| it.directory.path())).arg(keys);
    command.env("HOME", world.directory.path()).env("AWS_EC2_METADATA_DISABLED", "true");
    sees(&mut command, 3).await;
}
