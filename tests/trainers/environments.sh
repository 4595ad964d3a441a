#!/bin/sh
# Trainers whose requirements clash with ours, each in a folder of its own: environments.sh PYTHON FOLDER
# Only what their loaders of data import is there; the rest comes from the environment of PYTHON.
set -eu
python=$1 root=$2
mkdir -p "$root"

into() {
    name=$1
    shift
    [ "$(cat "$root/$name/ready" 2>/dev/null)" = "$*" ] && return
    rm -rf "${root:?}/$name"
    "$python" -m pip install --quiet --no-compile --no-deps --ignore-requires-python --target "$root/$name" "$@"
    echo "$*" >"$root/$name/ready"
}

into llama_factory llamafactory==0.9.5
into ms_swift ms-swift==4.6.0 modelscope==1.40.2 modelscope-hub==0.5.1 cryptography==50.0.2 json_repair==0.64.6 \
    oss2==2.19.1 tiktoken==0.14.0 attrdict==2.0.1 transformers_stream_generator==0.0.5
into axolotl axolotl==0.21.0 addict==2.4.0 distro==1.9.0 posthog==7.91.1 numba==0.68.1 llvmlite==0.50.0
into tinker tinker-cookbook==0.6.1 tinker==0.38.0 blobfile==3.3.0 chz==0.4.0 distro==1.9.0 httpx==0.28.1 orjson==3.13.0 \
    sniffio==1.3.1
into nemo nemo-automodel==0.7.0
# verl needs transformers 4, and with it older companions
into verl verl==0.9.1 omegaconf==2.4.0 antlr4-python3-runtime==4.9.3 tensordict==0.15.3 pyvers==0.2.3 \
    transformers==4.56.2 huggingface_hub==0.35.3 tokenizers==0.22.1 datasets==4.1.1 peft==0.17.1 accelerate==1.10.1
into torchtune torchtune==0.6.1 torchao==0.7.0 omegaconf==2.4.0 antlr4-python3-runtime==4.9.3 sentencepiece==0.2.3 \
    tiktoken==0.14.0
