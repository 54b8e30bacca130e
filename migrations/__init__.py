if __name__ != "adapterhub.migrations":
    raise ImportError(f"'import {__name__}' would load adapterhub's folder twice; import adapterhub.migrations")
