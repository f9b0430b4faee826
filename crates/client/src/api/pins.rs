//! Requests about the pins of a cache.

use dormer_api::v2::{AddPinRequest, AddPinResponse, ListPinsRequest, ListPinsResponse, RemovePinsResponse};
use dormer_api::{CacheName, PinName, routes};
use dormer_nix::StorePathHash;
use reqwest::Method;

use super::{ApiClient, Repeat};
use crate::error::Result;

impl ApiClient {
    /// Pins a path under a name.
    pub async fn add_pin(
        &self,
        cache: &CacheName,
        name: &PinName,
        request: &AddPinRequest,
    ) -> Result<AddPinResponse> {
        let action = format!("adding a pin to cache {cache}");
        let route = routes::v2_pin(cache, name);
        self.ask(&action, Repeat::Always, || self.request(Method::PUT, &route).json(request)).await
    }

    /// A page of a cache's pins.
    pub async fn list_pins(&self, cache: &CacheName, request: &ListPinsRequest) -> Result<ListPinsResponse> {
        let action = format!("listing the pins of cache {cache}");
        let route = routes::v2_pins(cache);
        self.ask(&action, Repeat::Always, || self.request(Method::POST, &route).json(request)).await
    }

    /// Removes the pins of a name, or only that of one path.
    pub async fn remove_pins(
        &self,
        cache: &CacheName,
        name: &PinName,
        hash: Option<&StorePathHash>,
    ) -> Result<RemovePinsResponse> {
        let action = format!("removing pins from cache {cache}");
        let route = match hash {
            Some(hash) => routes::v2_pinned_path(cache, name, hash),
            None => routes::v2_pin(cache, name),
        };
        self.ask(&action, Repeat::Always, || self.request(Method::DELETE, &route)).await
    }
}
