if __name__ != "adapterhub.hub":
    raise ImportError(f"'import {__name__}' would load adapterhub's folder twice; import adapterhub.hub")
