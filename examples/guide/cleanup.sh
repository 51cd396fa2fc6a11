#!/bin/bash
# Removes what the example has made, and only that; what is gone already is no error: ./cleanup.sh BUCKET
set -euo pipefail
bucket=${1:?the bucket with app.zip}
account=$(aws sts get-caller-identity --query Account --output text)
image=arn:aws:lambda:us-east-1:$account:microvm-image:my-flask-microvm

microvms() { # What has not ended yet, whatever it does: ids, one a line
    aws lambda-microvms list-microvms --query "items[?imageArn=='$image' && state!='TERMINATED'].[microvmId]" --output text
}

has_image() {
    aws lambda-microvms get-microvm-image --image-identifier "$image" >/dev/null 2>&1
}

if has_image; then
    for microvm in $(microvms); do
        echo "terminating $microvm"
        aws lambda-microvms terminate-microvm --microvm-identifier "$microvm"
    done
    # An image whose microVMs are not gone yet is kept.
    while [ -n "$(microvms)" ]; do sleep 1; done
    echo "deleting the image"
    aws lambda-microvms delete-microvm-image --image-identifier "$image" --query state
    while has_image; do sleep 1; done
else
    echo "there is no image"
fi

for role in MicroVMBuildRole MicroVMExecutionRole; do
    if ! aws iam get-role --role-name $role >/dev/null 2>&1; then
        echo "there is no role $role"
        continue
    fi
    for policy in $(aws iam list-attached-role-policies --role-name $role \
        --query 'AttachedPolicies[].PolicyArn' --output text); do
        aws iam detach-role-policy --role-name $role --policy-arn "$policy"
    done
    aws iam delete-role --role-name $role
    echo "deleted the role $role"
done

aws s3 rm "s3://$bucket/app.zip"
