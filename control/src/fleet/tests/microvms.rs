use super::*;
use crate::endpoint::grant::Grant;
use crate::fleet::microvm::Event;
use crate::seal::Kind;

fn policy(idle: i64, suspended: i64, resumes: bool) -> Value {
    json!({ "idlePolicy": {
        "maxIdleDurationSeconds": idle, "suspendedDurationSeconds": suspended, "autoResumeEnabled": resumes,
    } })
}

fn id_of(id: &str) -> Value {
    json!({ "microvmIdentifier": id })
}

#[test]
fn a_microvm_runs_is_suspended_resumed_and_terminated() {
    let mut world = World::new();
    let image = world.image("a");
    let answer = world.ask("RunMicrovm", json!({ "imageIdentifier": image }));
    let id = answer["microvmId"].as_str().unwrap().to_owned();
    assert_eq!(
        (&answer["state"], &answer["maximumDurationInSeconds"]),
        (&json!("PENDING"), &json!(28800))
    );
    assert!(answer["endpoint"].as_str().unwrap().ends_with(".lambda-microvm.us-east-1.localhost"));
    assert_eq!(world.take_actions(), [Action::Launch(id.clone())]);
    world.happened(&id, Event::Launched);
    assert_eq!(world.state(&id), "RUNNING");
    world.ask("SuspendMicrovm", id_of(&id));
    assert_eq!(world.state(&id), "SUSPENDING");
    world.happened(&id, Event::Suspended);
    world.ask("SuspendMicrovm", id_of(&id));
    assert_eq!(world.take_actions(), [Action::Suspend(id.clone())]);
    world.ask("ResumeMicrovm", id_of(&id));
    assert_eq!(world.state(&id), "SUSPENDED", "until it is done");
    world.happened(&id, Event::Resumed);
    assert_eq!(world.state(&id), "RUNNING");
    world.ask("TerminateMicrovm", id_of(&id));
    assert_eq!(world.take_actions(), [Action::Resume(id.clone()), Action::Terminate(id.clone())]);
    world.happened(&id, Event::Terminated);
    let answer = world.ask("GetMicrovm", id_of(&id));
    assert_eq!(
        (&answer["state"], &answer["stateReason"]),
        (&json!("TERMINATED"), &json!("Success."))
    );
    assert!(answer["terminatedAt"].is_f64());
    assert_eq!(world.ask("TerminateMicrovm", id_of(&id)), json!({}));
    for operation in ["SuspendMicrovm", "ResumeMicrovm"] {
        let error = world.refused(operation, id_of(&id));
        let text = format!("The MicroVM {id} has been terminated and its state cannot be changed.");
        assert_eq!((error.status, error.message), (400, text));
    }
}

#[test]
fn an_idle_microvm_is_suspended_and_wakes_for_a_request() {
    let mut world = World::new();
    let image = world.image("a");
    let id = world.microvm(&image, policy(60, 300, true));
    world.pass(59);
    assert_eq!(world.state(&id), "RUNNING");
    world.traffic.insert(id.clone(), Traffic::Open);
    world.pass(600);
    assert_eq!(world.state(&id), "RUNNING", "somebody is there");
    world.traffic.insert(id.clone(), Traffic::Ended(world.now));
    world.pass(59);
    assert_eq!(world.state(&id), "RUNNING");
    world.pass(1);
    assert_eq!(world.take_actions(), [Action::Suspend(id.clone())]);
    world.report(Report::Wanted { id: id.clone() });
    assert_eq!(world.state(&id), "SUSPENDING");
    world.happened(&id, Event::Suspended);
    world.report(Report::Wanted { id: id.clone() });
    world.report(Report::Wanted { id: id.clone() });
    assert_eq!(
        (world.state(&id).as_str(), world.take_actions()),
        ("PENDING", vec![Action::Resume(id.clone())])
    );
    world.happened(&id, Event::ResumeFailed);
    assert_eq!(world.state(&id), "SUSPENDED");
    world.pass(300);
    assert_eq!(world.take_actions(), [Action::Terminate(id)]);
}

#[test]
fn without_auto_resume_a_request_wakes_nobody() {
    let mut world = World::new();
    let image = world.image("a");
    for more in [policy(60, 300, false), json!({})] {
        let id = world.microvm(&image, more);
        world.ask("SuspendMicrovm", id_of(&id));
        world.happened(&id, Event::Suspended);
        world.report(Report::Wanted { id: id.clone() });
        assert_eq!(world.state(&id), "SUSPENDED");
    }
}

#[test]
fn a_policy_without_time_to_be_suspended_in_ends_it_at_once() {
    let mut world = World::new();
    let image = world.image("a");
    let id = world.microvm(&image, policy(60, 0, true));
    world.pass(60);
    world.take_actions();
    world.happened(&id, Event::Suspended);
    assert_eq!(world.take_actions(), [Action::Terminate(id.clone())]);
    assert_eq!(world.state(&id), "TERMINATING");
}

#[test]
fn without_a_policy_it_is_never_idle_but_its_life_ends() {
    let mut world = World::new();
    let image = world.image("a");
    let id = world.microvm(&image, json!({ "maximumDurationInSeconds": 1000 }));
    world.pass(999);
    assert_eq!(world.state(&id), "RUNNING");
    world.pass(1);
    assert_eq!(world.take_actions(), [Action::Terminate(id.clone())]);
    world.happened(&id, Event::Terminated);
    let answer = world.ask("GetMicrovm", id_of(&id));
    assert_eq!(answer["stateReason"], "The maximum duration has been reached.");
}

#[test]
fn the_reason_of_a_failed_launch_is_shown() {
    let mut world = World::new();
    let image = world.image("a");
    let answer = world.ask("RunMicrovm", json!({ "imageIdentifier": image }));
    let id = answer["microvmId"].as_str().unwrap().to_owned();
    let reason = Some("Run lifecycle hook returned HTTP status 400.".to_owned());
    world.report(Report::Microvm {
        id: id.clone(),
        event: Event::LaunchFailed,
        reason: reason.clone(),
        measured: Measured::default(),
    });
    world.happened(&id, Event::Terminated);
    assert_eq!(world.ask("GetMicrovm", id_of(&id))["stateReason"], json!(reason));
}

#[test]
fn without_a_worker_nothing_runs_and_it_is_said() {
    let mut world = World::new();
    let image = world.image("a");
    world.refusal = Some("no worker");
    let error = world.refused("RunMicrovm", json!({ "imageIdentifier": image }));
    assert_eq!(
        (error.status, error.code, error.message.as_str()),
        (500, "InsufficientCapacityException", "no worker")
    );
}

#[test]
fn a_shell_needs_its_connector() {
    let mut world = World::new();
    let image = world.image("a");
    let managed = |word: &str| {
        format!("arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:{word}")
    };
    let token = |id: &str| with(id_of(id), json!({ "expirationInMinutes": 5 }));
    let without = world.microvm(&image, json!({}));
    let error = world.refused("CreateMicrovmShellAuthToken", token(&without));
    assert_eq!(
        error.message,
        "Shell access requires SHELL_INGRESS network connector to be configured on the MicroVM."
    );
    let both =
        json!({ "ingressNetworkConnectors": [managed("SHELL_INGRESS"), managed("ALL_INGRESS")] });
    let both = world.microvm(&image, both);
    let error = world.refused("CreateMicrovmShellAuthToken", token(&both));
    assert!(error.message.starts_with("ALL_INGRESS cannot be combined"), "{error}");
    for wrong in [managed("INTERNET_EGRESS"), managed("X"), "HTTP_INGRESS".into()] {
        let input = json!({ "imageIdentifier": image, "ingressNetworkConnectors": [wrong] });
        assert_eq!(world.refused("RunMicrovm", input).code, "ValidationException");
    }
}

#[test]
fn a_token_grants_what_was_asked_for_and_no_more() {
    let mut world = World::new();
    let image = world.image("a");
    let id = world.microvm(&image, json!({}));
    let input = |minutes: i64, ports: Value| {
        with(id_of(&id), json!({ "expirationInMinutes": minutes, "allowedPorts": ports }))
    };
    let ports = json!([{"port": 8080}, {"range": {"startPort": 9000, "endPort": 9002}}]);
    let answer = world.ask("CreateMicrovmAuthToken", input(5, ports.clone()));
    let token = answer["authToken"]["X-aws-proxy-auth"].as_str().unwrap();
    let grant: Grant = world.seal.open(Kind::Endpoint, token).unwrap();
    assert_eq!((&grant.microvm, grant.expires), (&id, world.now.plus_seconds(300)));
    let allowed: Vec<u16> = (1..=u16::MAX).filter(|port| grant.allows(*port)).collect();
    assert_eq!(allowed, [8080, 9000, 9001, 9002]);
    let all = world.ask("CreateMicrovmAuthToken", input(60, json!([{"allPorts": {}}])));
    let token = all["authToken"]["X-aws-proxy-auth"].as_str().unwrap();
    let grant: Grant = world.seal.open(Kind::Endpoint, token).unwrap();
    assert!((1..=u16::MAX).all(|port| grant.allows(port)));
    let backwards = json!([{"range": {"startPort": 2, "endPort": 1}}]);
    let many = json!(vec![json!({"port": 1}); 65]);
    for (minutes, ports, word) in
        [(61, ports.clone(), "60"), (1, backwards, "ends before"), (1, many, "64")]
    {
        let error = world.refused("CreateMicrovmAuthToken", input(minutes, ports));
        assert!(error.code == "ValidationException" && error.message.contains(word), "{error}");
    }
    let managed = "arn:aws:lambda:us-east-1:aws:network-connector:aws-network-connector:NO_INGRESS";
    let closed = world.microvm(&image, json!({ "ingressNetworkConnectors": [managed] }));
    let closed = with(input(5, ports.clone()), id_of(&closed));
    assert!(world.refused("CreateMicrovmAuthToken", closed).message.contains("HTTP_INGRESS"));
    world.ask("TerminateMicrovm", id_of(&id));
    let error = world.refused("CreateMicrovmAuthToken", input(5, ports.clone()));
    assert!(error.code == "ConflictException" && error.message.contains("TERMINATING"), "{error}");
    world.happened(&id, Event::Terminated);
    let error = world.refused("CreateMicrovmAuthToken", input(5, ports));
    assert!(error.message.contains("has been terminated"), "{error}");
}

#[test]
fn nobody_comes_to_one_that_does_not_run_and_may_not_wake() {
    use crate::fleet::microvm::{Admission, Phase};
    let admitted = |may_wake: bool| Phase::ALL.map(|phase| phase.admit(may_wake));
    use Admission::{Pass, Refuse, Wait, Wake};
    assert_eq!(admitted(true), [Wait, Pass, Wait, Wake, Wait, Wait, Refuse, Refuse]);
    assert_eq!(admitted(false), [Wait, Pass, Refuse, Refuse, Wait, Wait, Refuse, Refuse]);
}

#[test]
fn terminated_microvms_are_listed_and_forgotten_in_time() {
    let mut settings = Settings::default();
    settings.quotas.terminated_microvms = 2;
    settings.quotas.terminated_retention_seconds = 100;
    let mut world = World::with_settings(settings);
    let image = world.image("a");
    for _ in 0..3 {
        let id = world.microvm(&image, json!({}));
        world.happened(&id, Event::Exited);
        world.happened(&id, Event::Terminated);
        world.now = world.now.plus_seconds(1);
    }
    let count =
        |world: &mut World| world.ask("ListMicrovms", json!({}))["items"].as_array().unwrap().len();
    assert_eq!(count(&mut world), 3);
    world.pass(0);
    assert_eq!(count(&mut world), 2, "the oldest went");
    world.pass(101);
    assert_eq!(count(&mut world), 0);
}

#[test]
fn a_list_is_the_newest_first_and_can_be_of_one_image() {
    let mut world = World::new();
    let (a, b) = (world.image("a"), world.image("b"));
    let mut ids = Vec::new();
    for image in [&a, &b, &a] {
        ids.insert(0, world.microvm(image, json!({})));
        world.now = world.now.plus_seconds(1);
    }
    let list = |world: &mut World, input: Value| -> Vec<String> {
        let answer = world.ask("ListMicrovms", input);
        let items = answer["items"].as_array().unwrap().iter();
        items.map(|item| item["microvmId"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(list(&mut world, json!({})), ids);
    assert_eq!(list(&mut world, json!({ "imageIdentifier": b })), [ids[1].clone()]);
    assert!(list(&mut world, json!({ "imageIdentifier": a, "imageVersion": "2.0" })).is_empty());
}

#[test]
fn after_a_restart_what_had_not_ended_is_begun_again() {
    let mut world = World::new();
    let image = world.image("a");
    let launching =
        world.ask("RunMicrovm", json!({ "imageIdentifier": image }))["microvmId"].clone();
    let suspending = world.microvm(&image, json!({}));
    world.ask("SuspendMicrovm", id_of(&suspending));
    world.microvm(&image, json!({}));
    let unfinished = world.fleet.unfinished();
    assert_eq!(unfinished.len(), 2);
    assert!(unfinished.contains(&Action::Launch(launching.as_str().unwrap().into())));
    assert!(unfinished.contains(&Action::Suspend(suspending)));
}
