"""Sign-in providers: the client side of OpenID Connect and OAuth 2.

`client.Provider` is one configured provider. It makes the URL that a browser is sent to, redeems
the code that comes back, and checks who the provider says the user is. `fetch` is the only module
that opens connections.

Invariants: no text of a provider reaches a client of this server. Only the identity process imports
this package: its libraries (joserfc, urllib3, cryptography) take 20 MB.
"""
