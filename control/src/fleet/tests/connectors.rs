use super::*;

fn input(name: &str) -> Value {
    json!({
        "Name": name, "ClientToken": "t", "OperatorRole": "arn:aws:iam::000000000000:role/Operator",
        "Configuration": { "VpcEgressConfiguration": {
            "SubnetIds": ["subnet-1"], "NetworkProtocol": "IPv4", "AssociatedComputeResourceTypes": ["MicroVm"],
        } },
    })
}

#[test]
fn a_connector_is_created_updated_used_and_deleted() {
    let mut world = World::new();
    let answer = world.ask("CreateNetworkConnector", input("n"));
    let id = answer["Id"].as_str().unwrap().to_owned();
    assert_eq!(answer["State"], "PENDING");
    assert_eq!(
        world.ask("CreateNetworkConnector", input("n"))["Id"],
        answer["Id"],
        "the same token"
    );
    assert_eq!(world.take_actions(), [Action::Connect(id.clone())]);
    world.report(Report::Connected { id: id.clone() });
    for identifier in [&json!(id), &json!("n"), &answer["Arn"]] {
        let answer = world.ask("GetNetworkConnector", json!({ "Identifier": identifier }));
        assert_eq!(
            (&answer["State"], &answer["StateReason"]),
            (&json!("ACTIVE"), &json!("Initial creation"))
        );
    }
    let same = json!({ "Identifier": "n", "Configuration": input("n")["Configuration"] });
    let unchanged = world.ask("UpdateNetworkConnector", same.clone());
    assert_eq!(unchanged["LastUpdateStatusReason"], "No configuration changes detected");
    let mut other = same;
    other["Configuration"]["VpcEgressConfiguration"]["SubnetIds"] = json!(["subnet-2"]);
    assert_eq!(
        world.ask("UpdateNetworkConnector", other.clone())["LastUpdateStatus"],
        "InProgress"
    );
    assert_eq!(world.refused("UpdateNetworkConnector", other).status, 409);
    assert_eq!(world.take_actions(), [Action::Connect(id.clone())]);
    world.report(Report::NotConnected { id: id.clone(), reason: "no".into() });
    assert_eq!(
        world.ask("GetNetworkConnector", json!({ "Identifier": "n" }))["LastUpdateStatus"],
        "Failed"
    );
    let image = world.image("a");
    let microvm = world.microvm(&image, json!({ "egressNetworkConnectors": [answer["Arn"]] }));
    assert_eq!(world.refused("DeleteNetworkConnector", json!({ "Identifier": "n" })).status, 409);
    world.happened(&microvm, microvm::Event::Exited);
    world.take_actions();
    assert_eq!(
        world.ask("DeleteNetworkConnector", json!({ "Identifier": "n" }))["State"],
        "DELETING"
    );
    assert_eq!(world.take_actions(), [Action::Disconnect(id.clone())]);
    world.report(Report::Disconnected { id });
    let error = world.refused("GetNetworkConnector", json!({ "Identifier": "n" }));
    assert_eq!((error.status, error.message.as_str()), (404, "Network connector not found for: n"));
}

#[test]
fn one_that_never_worked_is_not_used_and_goes_at_once() {
    let mut world = World::new();
    let answer = world.ask("CreateNetworkConnector", input("n"));
    let id = answer["Id"].as_str().unwrap().to_owned();
    world.report(Report::NotConnected { id, reason: "no network".into() });
    let shown = world.ask("GetNetworkConnector", json!({ "Identifier": "n" }));
    assert_eq!((&shown["State"], &shown["StateReason"]), (&json!("FAILED"), &json!("no network")));
    let image = with(spec(), json!({ "name": "a", "egressNetworkConnectors": [answer["Arn"]] }));
    assert!(world.refused("CreateMicrovmImage", image).message.contains("not active"));
    world.take_actions();
    world.ask("DeleteNetworkConnector", json!({ "Identifier": "n" }));
    assert!(world.take_actions().is_empty());
    assert_eq!(world.ask("ListNetworkConnectors", json!({})), json!({ "NetworkConnectors": [] }));
}

#[test]
fn what_the_live_service_requires_is_required() {
    let world = World::new();
    let error = world.refused("CreateNetworkConnector", json!({
        "Name": "n", "Configuration": { "VpcEgressConfiguration": { "SubnetIds": ["subnet-1"] } },
    }));
    for name in ["clientToken", "operatorRole", "networkProtocol", "associatedComputeResourceTypes"]
    {
        assert!(error.message.contains(name), "{name}: {error}");
    }
}

#[test]
fn a_page_ends_without_a_marker() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.ask("CreateNetworkConnector", with(input(name), json!({ "ClientToken": name })));
    }
    let first = world.ask("ListNetworkConnectors", json!({ "MaxItems": 2 }));
    let second =
        world.ask("ListNetworkConnectors", json!({ "MaxItems": 2, "Marker": first["NextMarker"] }));
    assert_eq!(second["NetworkConnectors"].as_array().unwrap().len(), 1);
    assert!(second.get("NextMarker").is_none());
    let versions = world.ask("ListNetworkConnectorVersions", json!({ "Identifier": "a" }));
    assert_eq!(versions["NetworkConnectorVersions"][0]["Version"], 1);
}
