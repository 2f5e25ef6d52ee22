"""What every process that accepts connections knows of HTTP/1.1.

    head   a request's head: the one parser of the HTTP port and of the socket ports
"""
