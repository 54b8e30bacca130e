"""What each public method of HfApi concerns: reviewed by hand, so that a new one is noticed."""

_SPACES = """
    add_space_secret add_space_variable delete_space_secret delete_space_storage delete_space_variable
    delete_space_volumes disable_space_dev_mode duplicate_space enable_space_dev_mode fetch_space_logs
    get_space_runtime get_space_secrets get_space_variables get_zero_gpu_quota list_space_templates list_spaces
    list_spaces_hardware pause_space request_space_hardware request_space_storage restart_space search_spaces
    set_space_sleep_time set_space_volumes space_info wait_for_space
"""
_JOBS = """
    cancel_job create_scheduled_job create_scheduled_uv_job delete_scheduled_job fetch_job_logs fetch_job_metrics
    inspect_job inspect_scheduled_job list_jobs list_jobs_hardware list_scheduled_jobs rerun_job resume_scheduled_job
    run_job run_uv_job suspend_scheduled_job sync_job_volume trigger_scheduled_job update_job_expose
    update_job_labels update_scheduled_job_labels update_scheduled_job_schedule wait_for_job
"""
_INFERENCE = """
    create_inference_endpoint create_inference_endpoint_from_catalog delete_inference_endpoint
    get_inference_endpoint list_inference_catalog list_inference_endpoints list_inference_endpoints_hardware
    pause_inference_endpoint resume_inference_endpoint scale_to_zero_inference_endpoint update_inference_endpoint
"""
_BUCKETS = """
    batch_bucket_files bucket_info create_bucket delete_bucket download_bucket_files get_bucket_file_metadata
    get_bucket_paths_info list_bucket_tree list_buckets move_bucket sync_bucket update_bucket_settings
"""
_DATASETS = """
    dataset_info get_dataset_leaderboard get_dataset_tags list_dataset_parquet_files list_datasets
"""
_OWN = {
    "Repositories": """
        auth_check create_repo delete_repo duplicate_repo get_full_repo_name get_model_tags list_models model_info
        move_repo repo_exists repo_info update_repo_settings update_repo_visibility
    """,
    "Revisions and commits": """
        create_branch create_commit create_tag delete_branch delete_tag list_repo_commits list_repo_refs
        resolve_revision revision_exists super_squash_history
    """,
    "Files": """
        copy_files delete_file delete_files delete_folder file_exists get_hf_file_metadata get_paths_info
        get_safetensors_metadata get_sharded_safetensors_metadata hf_hub_download list_lfs_files list_repo_files
        list_repo_tree parse_safetensors_file_metadata permanently_delete_lfs_files preupload_lfs_files
        run_as_future snapshot_download upload_file upload_folder upload_large_folder verify_repo_checksums
    """,
    "Users, organisations and tokens": """
        get_organization_overview get_token_permission get_user_overview list_liked_repos list_organization_followers
        list_organization_members list_repo_likers list_user_followers list_user_following list_user_repos unlike
        whoami
    """,
    "Gated access": """
        accept_access_request cancel_access_request grant_access list_accepted_access_requests
        list_pending_access_requests list_rejected_access_requests reject_access_request
    """,
    "Collections": """
        add_collection_item create_collection delete_collection delete_collection_item get_collection
        list_collections update_collection_item update_collection_metadata update_collection_resource_group
    """,
    "Discussions and pull requests": """
        change_discussion_status comment_discussion create_discussion create_pull_request edit_discussion_comment
        get_discussion_details get_repo_discussions hide_discussion_comment merge_pull_request rename_discussion
        upload_attachment
    """,
    "Webhooks": """
        create_webhook delete_webhook disable_webhook enable_webhook get_webhook list_webhooks update_webhook
    """,
}
_OTHER = {
    "Datasets": _DATASETS,
    "Spaces": _SPACES,
    "Kernels": "kernel_info",
    "Buckets": _BUCKETS,
    "Papers": "list_daily_papers list_papers paper_info read_paper",
    "Jobs": _JOBS,
    "Inference endpoints": _INFERENCE,
}


def _split(areas: dict[str, str]) -> dict[str, tuple[str, ...]]:
    return {area: tuple(methods.split()) for area, methods in areas.items()}


OWN = _split(_OWN)
"""Area -> the methods that concern what this hub keeps."""
OTHER = _split(_OTHER)
"""Area -> the methods that concern what it does not keep."""
ELSEWHERE = frozenset(OTHER["Inference endpoints"])
"""Methods that ask a host of their own, wherever HF_ENDPOINT leads."""
ELSEWHERE_IN_OLD = frozenset(
    {"create_scheduled_job", "create_scheduled_uv_job", "fetch_job_logs", "run_job", "run_uv_job"}
)
"""What does so in huggingface_hub before 1.0."""
REFUSED = {
    "permanently_delete_lfs_files": "a commit never changes",
    "update_collection_resource_group": "there are no resource groups",
    "upload_attachment": "no files lie beside repositories",
}
"""Methods that concern this hub and that it refuses, with why."""
REASONS = {
    "Datasets": "it holds models and patches only",
    "Spaces": "it runs no applications of its users",
    "Kernels": "it holds models and patches only",
    "Buckets": "what it holds has revisions, and a bucket has none",
    "Papers": "it holds models and patches only",
    "Jobs": "its own jobs merge and port, and are asked for over its own REST",
    "Inference endpoints": "the client asks a host of its own for them, wherever `HF_ENDPOINT` leads",
}
"""Area -> why this hub has none of it."""
