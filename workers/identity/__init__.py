"""The identity process: sign-in, passwords, codes, mail (spec/identity.md §0).

    server      the life of the process; imports all other modules after its fork
    execution   carries out one call: deadline, fresh sign-in, metrics
    actions     the table of actions, and the flow of each
    flows       the flows, a module for each family
    identity    the services that every flow gets
    accounts    whose an address is, new users, proof of a mailbox
    hashing     password hashes in threads
    providers   the client of OAuth 2 and OpenID Connect
    oauth_states, provider_accounts  sign-ins that wait for their browser; whose they are
"""
