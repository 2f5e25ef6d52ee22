// The button for passkeys on the sign-in page: asks this server for a challenge, lets the browser
// answer it, and sends the answer as a form. A browser that can also offers passkeys among what it
// fills into the field of the address. Without this script the page works as before: the button
// then stays hidden.
"use strict";

(() => {
  const form = document.getElementById("passkey");
  if (!form || !window.PublicKeyCredential || !navigator.credentials) {
    return;
  }

  const toBytes = (text) =>
    Uint8Array.from(atob(text.replace(/-/g, "+").replace(/_/g, "/")), (c) => c.charCodeAt(0));
  const toText = (bytes) =>
    btoa(String.fromCharCode(...new Uint8Array(bytes)))
      .replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");

  const showError = (text) => {
    let shown = document.getElementById("passkey-error");
    if (!shown) {
      shown = document.createElement("p");
      shown.id = "passkey-error";
      shown.className = "error";
      shown.setAttribute("role", "alert");
      form.before(shown);
    }
    shown.textContent = text;
  };

  const ask = async (options) => {
    const answer = await fetch(form.dataset.begin, {method: "POST"});
    const body = await answer.json();
    if (!answer.ok) {
      throw new Error(body.error.message);
    }
    const found = await navigator.credentials.get({
      publicKey: {...body.options, challenge: toBytes(body.options.challenge),
                  allowCredentials: []},
      ...options,
    });
    const {clientDataJSON, authenticatorData, signature, userHandle} = found.response;
    return {
      id: found.id, rawId: toText(found.rawId), type: found.type,
      response: {
        clientDataJSON: toText(clientDataJSON), authenticatorData: toText(authenticatorData),
        signature: toText(signature), userHandle: userHandle ? toText(userHandle) : null,
      },
    };
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = form.querySelector("button");
    button.disabled = true;
    stopOffer();
    try {
      form.elements.credential.value = JSON.stringify(await ask());
      form.submit();
    } catch (error) {
      const wasCancelled = error.name === "NotAllowedError";
      showError(wasCancelled ? "No passkey was used. Try again, or sign in in another way."
        : error.message);
      button.disabled = false;
      startOffer();
    }
  });
  form.hidden = false;

  // The offer beside the field of the address. A challenge ends after five minutes, so another one
  // takes its place before; a page that nobody looks at asks for none. The offer is silent: what
  // goes wrong with it leaves the button and the other forms.
  const RENEW_MS = 240_000;
  let stopOffer = () => {};

  const offer = async () => {
    const stop = new AbortController();
    const timer = setTimeout(() => stop.abort(), RENEW_MS);
    stopOffer = () => {
      clearTimeout(timer);
      stopOffer = () => {};
      stop.abort("the button is used");
    };
    try {
      form.elements.credential.value = JSON.stringify(
        await ask({mediation: "conditional", signal: stop.signal}));
      form.submit();
    } catch (error) {
      if (error.name === "AbortError" && document.visibilityState === "visible") {
        offer();
      } else if (error.name === "AbortError") {
        document.addEventListener("visibilitychange", offer, {once: true});
      }
    }
  };

  const startOffer = async () => {
    const field = document.querySelector("input[autocomplete~=webauthn]");
    const asks = PublicKeyCredential.isConditionalMediationAvailable;
    if (field && asks && await asks.call(PublicKeyCredential)) {
      offer();
    }
  };

  startOffer();
})();
