// The button for passkeys on the sign-in page: asks this server for a challenge, lets the browser
// answer it, and sends the answer as a form. Without this script the page works as before: the
// button then stays hidden.
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

  const ask = async () => {
    const answer = await fetch(form.dataset.begin, {method: "POST"});
    const body = await answer.json();
    if (!answer.ok) {
      throw new Error(body.error.message);
    }
    const found = await navigator.credentials.get({
      publicKey: {...body.options, challenge: toBytes(body.options.challenge),
                  allowCredentials: []},
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
    try {
      form.elements.credential.value = JSON.stringify(await ask());
      form.submit();
    } catch (error) {
      const wasCancelled = error.name === "NotAllowedError";
      showError(wasCancelled ? "No passkey was used. Try again, or sign in in another way."
        : error.message);
      button.disabled = false;
    }
  });
  form.hidden = false;
})();
