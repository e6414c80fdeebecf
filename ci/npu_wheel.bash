# Sourced by the scripts in this directory that run a real torch_npu wheel without an NPU. The caller defines log and skip.
# Wheel, stub libraries and runs are in the directory $DIR.
DIR="${NPU_CONTRACT_DIR:-$PWD/.npu_contract}"
prepare_wheel() {
    export TORCH_DEVICE_BACKEND_AUTOLOAD=0
    version="$(python -c 'import torch; print(torch.__version__.split("+")[0])')"
    site="$DIR/torch_npu-$version"
    if [ ! -d "$site/torch_npu" ]; then
        log "installing torch_npu $version in a separate directory"
        rm -rf "$site.new"
        python -m pip --quiet --disable-pip-version-check --retries 1 --timeout 20 install --no-deps --only-binary :all: \
            --target "$site.new" "torch_npu==$version" || skip "torch_npu $version is not available"
        mv "$site.new" "$site"
    fi
    python ci/npu_stub_libraries.py "$site" "$DIR/cann_stubs"
}
with_npu() {
    LD_LIBRARY_PATH="$DIR/cann_stubs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
        PYTHONPATH="$site:$PWD:$PWD/tests${PYTHONPATH:+:$PYTHONPATH}" MINDSPEED_LLM_TORCH_NPU="$version" "$@"
}
