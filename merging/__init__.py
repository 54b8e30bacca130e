if __name__ != "adapterhub.merging":
    raise ImportError(f"'import {__name__}' would load adapterhub's folder twice; import adapterhub.merging")
