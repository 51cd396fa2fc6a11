//! Network connectors: named ways out, which images and microVMs refer to.

use serde_json::{Value, json};

use super::names::ConnectorName;
use super::records::{Connector, ConnectorState, Update, UpdateStatus};
use super::{
    Action, Change, Context, Decided, Decision, Fleet, invalid, invalid_parameter, page_of, parse,
    text,
};
use crate::answer::ServiceError;

impl Fleet {
    pub(super) fn create_connector(&self, input: Value, context: &Context<'_>) -> Decided {
        require(&input)?;
        let replay = self.replay("CreateNetworkConnector", &input, context)?;
        if let Some(known) = replay.resource.as_ref().and_then(|id| self.connectors.get(id)) {
            return Ok(Decision::answer(self.show_connector(known)));
        }
        let name = text(&input, "Name").to_owned();
        if self.connectors.values().any(|connector| connector.name == name) {
            let text = format!("A network connector with the name {name} already exists.");
            return Err(ServiceError::new(409, "ResourceConflictException", text));
        }
        if self.connectors.len() >= self.settings.quotas.network_connectors {
            let text =
                "The maximum number of network connectors has been reached for this account.";
            return Err(ServiceError::new(400, "NetworkConnectorLimitExceededException", text));
        }
        let tags = match &input["Tags"] {
            Value::Null => Default::default(),
            tags => parse(tags.clone())?,
        };
        super::tags::check(&tags).map_err(invalid_parameter)?;
        let connector = Connector {
            id: format!("nc-{}", (context.fresh)()),
            name,
            configuration: input["Configuration"].clone(),
            operator_role: text(&input, "OperatorRole").into(),
            state: ConnectorState::Pending,
            state_reason: None,
            update: None,
            version: 1,
            modified: context.now,
            tags,
        };
        let id = connector.id.clone();
        let decision = Decision::answer(self.show_connector(&connector))
            .change(Change::PutConnector(connector))
            .act(Action::Connect(id.clone()));
        Ok(replay.remember(decision, &id))
    }

    pub(super) fn update_connector(&self, input: Value, context: &Context<'_>) -> Decided {
        let mut connector = self.connector(&input)?.clone();
        if connector.state != ConnectorState::Active || connector.unfinished().is_some() {
            return Err(busy(&connector));
        }
        let is_wanted = |name: &str, has: &Value| !input[name].is_null() && input[name] != *has;
        let role = json!(connector.operator_role);
        let is_changed = is_wanted("Configuration", &connector.configuration)
            || is_wanted("OperatorRole", &role);
        let mut decision = Decision::answer(Value::Null);
        connector.update = Some(if is_changed {
            if !input["Configuration"].is_null() {
                connector.configuration = input["Configuration"].clone();
            }
            if let Some(role) = input["OperatorRole"].as_str() {
                connector.operator_role = role.into();
            }
            connector.version += 1;
            connector.modified = context.now;
            decision = decision.act(Action::Connect(connector.id.clone()));
            Update { status: UpdateStatus::InProgress, reason: None }
        } else {
            let reason = Some("No configuration changes detected".into());
            Update { status: UpdateStatus::Successful, reason }
        });
        decision.answer = self.show_connector(&connector);
        Ok(decision.change(Change::PutConnector(connector)))
    }

    pub(super) fn delete_connector(&self, input: &Value, context: &Context<'_>) -> Decided {
        let mut connector = self.connector(input)?.clone();
        let arn = self.names.connector(&connector.id);
        let mut alive = self.microvms.values().filter(|microvm| microvm.phase.is_alive());
        if alive.any(|microvm| microvm.egress.contains(&arn)) {
            let text = "The network connector is used by MicroVMs.";
            return Err(ServiceError::new(409, "ResourceConflictException", text));
        }
        let was = connector.state;
        connector.state = ConnectorState::Deleting;
        connector.modified = context.now;
        let decision = Decision::answer(self.show_connector(&connector));
        Ok(match was {
            ConnectorState::Deleting => decision,
            // The worker has nothing of it.
            ConnectorState::Failed => self.forget_connector(&connector.id, decision),
            ConnectorState::Pending | ConnectorState::Active | ConnectorState::DeleteFailed => {
                let action = Action::Disconnect(connector.id.clone());
                decision.change(Change::PutConnector(connector)).act(action)
            }
        })
    }

    pub(super) fn forget_connector(&self, id: &str, mut decision: Decision) -> Decision {
        for token in self.tokens_of(id) {
            decision.changes.push(Change::DeleteToken(token.token.clone()));
        }
        decision.change(Change::DeleteConnector(id.into()))
    }

    pub(super) fn get_connector(&self, input: &Value) -> Decided {
        let connector = self.connector(input)?;
        let mut answer = self.show_connector(connector);
        answer["LastModified"] = json!(connector.modified.iso8601());
        if let Some(reason) = &connector.state_reason {
            answer["StateReason"] = json!(reason);
        }
        Ok(Decision::answer(answer))
    }

    pub(super) fn list_connectors(&self, input: &Value) -> Decided {
        let items = self.connectors.values().map(|connector| (connector.id.clone(), connector));
        let shown = page_of(items, input["Marker"].as_str(), limit(input), |connector| {
            is_in_state(connector, input).then(|| {
                json!({
                    "Arn": self.names.connector(&connector.id), "Id": connector.id, "Name": connector.name,
                    "State": connector.state, "Type": "VPC_EGRESS",
                    "LastModified": connector.modified.iso8601(),
                })
            })
        });
        page("NetworkConnectors", shown)
    }

    /// The service keeps old versions; here the present one is all there is.
    pub(super) fn list_connector_versions(&self, input: &Value) -> Decided {
        let connector = self.connector(input)?;
        let items = std::iter::once((connector.id.clone(), connector));
        let shown = page_of(items, input["Marker"].as_str(), limit(input), |connector| {
            is_in_state(connector, input).then(|| {
                let arn = self.names.connector(&connector.id);
                json!({
                    "VersionArn": format!("{arn}:{}", connector.version), "Arn": arn, "Id": connector.id,
                    "Name": connector.name, "Version": connector.version, "State": connector.state,
                    "StateReason": connector.state_reason, "LastModified": connector.modified.iso8601(),
                })
            })
        });
        page("NetworkConnectorVersions", shown)
    }

    /// By its ARN, its id or its name.
    fn connector(&self, input: &Value) -> Result<&Connector, ServiceError> {
        let identifier = text(input, "Identifier");
        let id = match self.names.connector_name(identifier) {
            Some(ConnectorName::Own(id)) => id,
            _ if identifier.starts_with("arn:") => {
                let text = format!(
                    "{identifier} is not the ARN of a network connector of this account and region."
                );
                return Err(invalid_parameter(text));
            }
            _ => identifier,
        };
        let named = || self.connectors.values().find(|connector| connector.name == identifier);
        self.connectors.get(id).or_else(named).ok_or_else(|| {
            let text = format!("Network connector not found for: {identifier}");
            ServiceError::new(404, "ResourceNotFoundException", text)
        })
    }

    fn show_connector(&self, connector: &Connector) -> Value {
        let mut answer = json!({
            "Arn": self.names.connector(&connector.id), "Id": connector.id, "Name": connector.name,
            "Configuration": connector.configuration, "OperatorRole": connector.operator_role,
            "State": connector.state,
        });
        if let Some(update) = &connector.update {
            answer["LastModified"] = json!(connector.modified.iso8601());
            answer["LastUpdateStatus"] = json!(update.status);
            if let Some(reason) = &update.reason {
                answer["LastUpdateStatusReason"] = json!(reason);
            }
        }
        answer
    }
}

/// The live service requires these, although its model does not.
fn require(input: &Value) -> Result<(), ServiceError> {
    let configuration = &input["Configuration"]["VpcEgressConfiguration"];
    let path = "configuration.vpcEgressConfiguration";
    let members = [
        (&input["ClientToken"], "clientToken".to_owned()),
        (&input["OperatorRole"], "operatorRole".to_owned()),
        (&configuration["NetworkProtocol"], format!("{path}.networkProtocol")),
        (
            &configuration["AssociatedComputeResourceTypes"],
            format!("{path}.associatedComputeResourceTypes"),
        ),
    ];
    let missing: Vec<String> = members
        .iter()
        .filter(|(value, _)| value.is_null())
        .map(|(_, name)| {
            format!("Value null at '{name}' failed to satisfy constraint: Member must not be null")
        })
        .collect();
    let count = match missing.len() {
        0 => return Ok(()),
        1 => "1 validation error detected".to_owned(),
        count => format!("{count} validation errors detected"),
    };
    Err(invalid(format!("{count}: {}", missing.join("; "))))
}

pub(super) fn busy(connector: &Connector) -> ServiceError {
    let state = serde_json::to_value(connector.state).unwrap_or_default();
    let state = state.as_str().unwrap_or_default();
    let text = format!("The network connector cannot be updated in its current state: {state}");
    ServiceError::new(409, "ResourceConflictException", text)
}

fn is_in_state(connector: &Connector, input: &Value) -> bool {
    input["State"].is_null() || input["State"] == json!(connector.state)
}

fn limit(input: &Value) -> Option<usize> {
    input["MaxItems"].as_u64().and_then(|number| usize::try_from(number).ok())
}

/// The end is told by there being no marker.
fn page(name: &str, shown: Option<(Vec<Value>, Option<String>)>) -> Decided {
    let (items, next) =
        shown.ok_or_else(|| invalid_parameter("The Marker is none of this service's."))?;
    let mut answer = json!({ name: items });
    if let Some(next) = next {
        answer["NextMarker"] = json!(next);
    }
    Ok(Decision::answer(answer))
}
