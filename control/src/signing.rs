//! Signature Version 4 on requests of ours.

use std::time::SystemTime;

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4;
use hyper::Request;

/// Whose requests they are, and where they go.
#[derive(Clone, Debug)]
pub struct Signer<'a> {
    /// `https://HOST:PORT`
    pub origin: &'a str,
    /// The region there.
    pub region: &'a str,
    /// `s3`, ...
    pub service: &'a str,
    /// What signs.
    pub credentials: Credentials,
}

impl Signer<'_> {
    /// Signs a request, which names its path alone.
    ///
    /// # Errors
    /// What cannot be part of a request, in words.
    pub fn sign<B>(&self, request: &mut Request<B>, body: SignableBody<'_>) -> Result<(), String> {
        let failed = |error: &dyn std::error::Error| error.to_string();
        let identity = self.credentials.clone().into();
        let mut settings = SigningSettings::default();
        // A key of S3 is what it is.
        if self.service == "s3" {
            settings.percent_encoding_mode = PercentEncodingMode::Single;
            settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        } else {
            settings.percent_encoding_mode = PercentEncodingMode::Double;
        }
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(self.region)
            .name(self.service)
            .time(SystemTime::now())
            .settings(settings)
            .build()
            .map_err(|error| failed(&error))?
            .into();
        let headers = request.headers().iter();
        let headers =
            headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)));
        let (method, url) =
            (request.method().as_str(), format!("{}{}", self.origin, request.uri()));
        let signed = SignableRequest::new(method, url, headers, body)
            .and_then(|signable| sign(signable, &params));
        let (instructions, _) = signed.map_err(|error| failed(&error))?.into_parts();
        instructions.apply_to_request_http1x(request);
        Ok(())
    }
}
