use serde_json::json;

use super::*;

const IMAGES: &str = "/2025-09-09/microvm-images";

fn parse(method: &str, path: &str, query: &str, body: Value) -> Result<(String, Value), String> {
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let models = Model::all().unwrap();
    let result = models.iter().find_map(|model| model.parse_request(method, path, query, &body));
    let result = result.expect("an operation is found");
    result
        .map(|parsed| (parsed.operation.name.clone(), parsed.input))
        .map_err(|error| error.message)
}

fn image(change: impl FnOnce(&mut Value)) -> Value {
    let mut input = json!({
        "baseImageArn": "arn:aws:lambda:us-east-1:aws:microvm-image:al2023-1",
        "buildRoleArn": "arn:aws:iam::000000000000:role/Build",
        "codeArtifact": {"uri": "s3://b/app.zip"}, "name": "mine", "clientToken": "t",
    });
    change(&mut input);
    input
}

#[test]
fn every_operation_is_found_by_its_own_path() {
    let mut count = 0;
    for model in Model::all().unwrap() {
        for operation in &model.operations {
            let path = operation.uri.replace(['{', '}'], "x");
            let found = model.parse_request(&operation.method, &path, "", b"").unwrap();
            // Without a body some lack members; that is found of the right operation too.
            if let Ok(parsed) = found {
                assert_eq!(parsed.operation.name, operation.name);
            }
            count += 1;
        }
    }
    assert_eq!(count, 24 + 6);
}

#[test]
fn an_arn_in_the_path_may_be_encoded_or_not() {
    let arn = "arn:aws:lambda:us-east-1:000000000000:microvm-image:mine";
    for text in [arn.to_owned(), arn.replace(':', "%3A")] {
        let (name, input) = parse("GET", &format!("{IMAGES}/{text}"), "", Value::Null).unwrap();
        assert_eq!((name.as_str(), &input["imageIdentifier"]), ("GetMicrovmImage", &json!(arn)));
    }
    let (_, input) = parse("GET", &format!("{IMAGES}/a%2Fb%20%C3%A9+"), "", Value::Null).unwrap();
    assert_eq!(input["imageIdentifier"], "a/b é+");
}

#[test]
fn a_query_has_numbers_words_and_lists() {
    let (_, input) =
        parse("GET", IMAGES, "maxResults=5&nextToken=a%2Bb%2Fc%3D%3D", Value::Null).unwrap();
    assert_eq!(input, json!({"maxResults": 5, "nextToken": "a+b/c=="}));
    let path = "/2017-03-31/tags/arn%3Aaws%3Alambda%3Aus-east-1%3A000000000000%3Amicrovm-image%3Am";
    let (_, input) = parse("DELETE", path, "tagKeys=a&tagKeys=c", Value::Null).unwrap();
    assert_eq!(input["TagKeys"], json!(["a", "c"]));
    assert!(parse("GET", IMAGES, "maxResults=x", Value::Null).unwrap_err().contains("'x'"));
    assert!(parse("GET", IMAGES, "bogus=1", Value::Null).unwrap_err().contains("'bogus'"));
}

/// The texts of the live service, but for the order of several.
#[test]
fn the_texts_are_the_services() {
    let error =
        parse("POST", IMAGES, "", image(|input| input["name"] = json!("bad name!"))).unwrap_err();
    assert_eq!(
        error,
        "1 validation error detected: Value 'bad name!' at 'name' failed to satisfy constraint: \
        Member must satisfy regular expression pattern: [a-zA-Z0-9-_]+"
    );
    let error = parse("POST", IMAGES, "", json!({"name": "x", "clientToken": "t"})).unwrap_err();
    assert!(error.starts_with("3 validation errors detected: "), "{error}");
    for name in ["baseImageArn", "codeArtifact", "buildRoleArn"] {
        let text =
            format!("Value null at '{name}' failed to satisfy constraint: Member must not be null");
        assert!(error.contains(&text), "{error}");
    }
    let subnets: Vec<String> = (1..=17).map(|number| format!("subnet-{number:017}")).collect();
    let error = parse(
        "POST",
        "/2026-04-04/network-connectors",
        "",
        json!({
            "Name": "n", "Configuration": {"VpcEgressConfiguration": {"SubnetIds": subnets}},
        }),
    );
    assert_eq!(
        error.unwrap_err(),
        format!(
            "1 validation error detected: Value '[{}]' at 'configuration.vpcEgressConfiguration.subnetIds' failed to \
         satisfy constraint: Member must have length less than or equal to 16",
            subnets.join(", ")
        )
    );
}

#[test]
fn every_kind_of_constraint_is_checked() {
    type Change = fn(&mut Value);
    let cases: Vec<(Change, &str)> = vec![
        (|i| i["name"] = json!(""), "length greater than or equal to 1"),
        (|i| i["name"] = json!("x".repeat(65)), "length less than or equal to 64"),
        (|i| i["additionalOsCapabilities"] = json!(["NONE"]), "enum value set: [ALL]"),
        (
            |i| i["hooks"] = json!({"port": 0}),
            "'hooks.port' failed to satisfy constraint: Member must have value greater",
        ),
        (|i| i["hooks"] = json!({"port": 70000}), "value less than or equal to 65535"),
        (|i| i["resources"] = json!([{}]), "Value null at 'resources.1.member.minimumMemoryInMiB'"),
        (|i| i["codeArtifact"] = json!({}), "Exactly one member"),
        (|i| i["tags"] = json!({"": "x"}), "Map keys must satisfy constraint"),
        (|i| i["tags"] = json!({"k": "\u{0}"}), "Map value must satisfy constraint"),
        (|i| i["bogus"] = json!(1), "no member 'bogus'"),
        (|i| i["hooks"] = json!({"bogus": 1}), "no member 'hooks.bogus'"),
        (|i| i["hooks"] = json!({"port": "x"}), "'hooks.port' is not of type integer"),
        (|i| i["hooks"] = json!({"port": 5_000_000_000_i64}), "too large"),
        (|i| i["hooks"] = json!(3), "'hooks' is not of type structure"),
    ];
    for (change, text) in cases {
        let error = parse("POST", IMAGES, "", image(change)).unwrap_err();
        assert!(error.contains(text), "{text}: {error}");
    }
    parse("POST", IMAGES, "", image(|_| {})).unwrap();
}

#[test]
fn secrets_are_not_repeated() {
    let secret = "s".repeat(5000);
    let change = |input: &mut Value| input["environmentVariables"] = json!({ "K": secret.clone() });
    let error = parse("POST", IMAGES, "", image(change)).unwrap_err();
    assert!(error.contains("Value at 'environmentVariables'") && !error.contains("sss"), "{error}");
}

#[test]
fn nonsense_is_refused_and_does_no_harm() {
    let model = &Model::all().unwrap()[0];
    for body in ["", "{", "[]", "null", "\"x\"", "{\"name\":{\"a\":[[[[[]]]]]}}", "\u{0}"] {
        let result = model.parse_request("POST", IMAGES, "", body.as_bytes()).unwrap();
        result.unwrap_err();
    }
    for path in ["", "/", "//", "/2025-09-09/microvm-images/", "/2025-09-09/microvms/x/y/z"] {
        assert!(model.parse_request("GET", path, "", b"").is_none(), "{path}");
    }
}
