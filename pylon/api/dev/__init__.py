"""Pages and routes of dev mode, for developers. Outside of dev mode none of them exists.

    start_page  the page at `/` of an app that has no page yet
    overlay     the script in the app's pages, which shows errors and reloads, and its route
"""
