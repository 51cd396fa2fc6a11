//! Errors, in the words of the operation that they are an error of.
//!
//! The two services call the same failure differently. Tags are one API with both behind it: those of images have the
//! words of `lambda-microvms`, all others those of `lambda-core`.

use super::{Model, decode};
use crate::answer::{Members, ServiceError};

/// What `lambda-microvms` says, and what `lambda-core` says instead.
const WORDS: [(&str, &str); 3] = [
    ("InternalServerException", "ServiceException"),
    ("ThrottlingException", "TooManyRequestsException"),
    ("ConflictException", "ResourceConflictException"),
];

impl Model {
    /// Makes an error what the operation of a request calls it, if that is one of this service's.
    pub fn spell(&self, method: &str, path: &str, error: &mut ServiceError) {
        let Some((operation, labels)) = self.find(method, path) else { return };
        let has = |code: &str| operation.errors.iter().any(|name| name == code);
        let is_image =
            |raw: &str| decode(raw).is_ok_and(|resource| resource.contains(":microvm-image:"));
        let of_image = labels.iter().any(|(_, raw)| is_image(raw));
        for (own, other) in WORDS {
            if error.code == own && has(other) && !(has(own) && of_image) {
                error.code = other;
            }
        }
        let Some(shape) = self.shapes.get(error.code).filter(|_| has(error.code)) else { return };
        error.status = shape.status.unwrap_or(error.status);
        let has_member = |name: &str| shape.members.iter().any(|member| member.name == name);
        if has_member("Message") {
            error.members = Members::CapitalMessage;
        } else if has_member("Reason") {
            error.members = Members::Throttle;
        }
    }
}
