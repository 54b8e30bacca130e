if __name__ != "adapterhub.cli":
    raise ImportError(f"'import {__name__}' would load adapterhub's folder twice; import adapterhub.cli")
