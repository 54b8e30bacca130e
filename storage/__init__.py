if __name__ != "adapterhub.storage":
    raise ImportError(f"'import {__name__}' would load adapterhub's folder twice; import adapterhub.storage")
